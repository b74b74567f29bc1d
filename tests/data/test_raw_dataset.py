from pathlib import Path

import pytest
from conftest import rows, tiny_images

from cifar_resnet.data.raw_dataset import Picture, RawDataset, has_raw_dataset, read_raw_dataset, write_raw_dataset
from cifar_resnet.errors import UserError


def tiny_dataset() -> RawDataset:
    splits = {"train": tiny_images(2, seed=1), "test": tiny_images(1, seed=2)}
    pictures = {
        name: [Picture(f"{name}/ä, {row}.png", f"{row:032x}") for row in range(len(images))]
        for name, images in splits.items()
    }
    return RawDataset("photos", tuple("abcdefghij"), splits, pictures)


def test_a_dataset_is_read_as_it_was_written(tmp_path: Path) -> None:
    dataset = tiny_dataset()
    assert not has_raw_dataset(tmp_path)
    write_raw_dataset(tmp_path, dataset)
    assert has_raw_dataset(tmp_path)
    again = read_raw_dataset(tmp_path)
    assert (again.source, again.classes, again.pictures) == (dataset.source, dataset.classes, dataset.pictures)
    for name, images in dataset.splits.items():
        assert (again.splits[name].pixels == images.pixels).all()
        assert (again.splits[name].labels == images.labels).all()


def test_the_manifest_lists_every_picture_with_its_class_and_hash(tmp_path: Path) -> None:
    dataset = tiny_dataset()
    write_raw_dataset(tmp_path, dataset)
    table = rows(tmp_path / "manifest.csv")
    assert len(table) == 30
    label = dataset.splits["test"].labels[1]
    assert table[21] == {"split": "test", "class": dataset.classes[label], "file": "test/ä, 1.png", "md5": f"{1:032x}"}


def test_a_manifest_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    write_raw_dataset(tmp_path, tiny_dataset())
    path = tmp_path / "manifest.csv"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    with pytest.raises(UserError, match=r"manifest.csv: 9 pictures in test found, 10 expected; run `dvc repro -f"):
        read_raw_dataset(tmp_path)
