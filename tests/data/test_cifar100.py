"""Small files in CIFAR-100's format: 4 fine classes, 2 training images of each and 1 test image."""

import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cifar_resnet.data.cifar100 import is_cifar100, read_cifar100
from cifar_resnet.errors import UserError

CLASSES = ("apple", "baby", "bear", "cloud")
LABELS = {"train": [0, 1, 2, 3, 3, 2, 1, 0], "test": [3, 1, 0, 2]}
PIXELS = {
    name: np.random.default_rng(len(name)).integers(0, 256, (len(labels), 3072), np.uint8)
    for name, labels in LABELS.items()
}


def write_binary(folder: Path) -> Path:
    folder.mkdir()
    for name, labels in LABELS.items():
        columns = np.array([[label // 2, label] for label in labels], dtype=np.uint8)
        (folder / f"{name}.bin").write_bytes(np.hstack([columns, PIXELS[name]]).tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(CLASSES) + "\n")
    (folder / "coarse_label_names.txt").write_text("things\npeople\n")
    return folder


def write_python(folder: Path, *, keys: type[str] | type[bytes] = bytes) -> Path:
    def key(name: str) -> Any:
        return name if keys is str else name.encode()

    folder.mkdir()
    for name, labels in LABELS.items():
        batch = {key("data"): PIXELS[name], key("fine_labels"): labels, key("coarse_labels"): [0] * len(labels)}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({key("fine_label_names"): [key(name) for name in CLASSES]}, protocol=2))
    return folder


def packed(folder: Path) -> Path:
    path = folder.parent / f"{folder.name}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return path


def test_both_versions_unpacked_or_as_an_archive_give_the_same_images(tmp_path: Path) -> None:
    (tmp_path / "around").mkdir()
    binary = write_binary(tmp_path / "around/cifar-100-binary")
    python = write_python(tmp_path / "cifar-100-python")
    later = write_python(tmp_path / "ciFAIR-100", keys=str)
    for path in (binary, binary.parent, packed(binary), python, packed(python), later):
        assert is_cifar100(path), path
        dataset = read_cifar100(path, "files")
        assert dataset.classes == CLASSES
        assert dataset.is_published
        for name, labels in LABELS.items():
            assert dataset.splits[name].labels.tolist() == labels
            assert (dataset.splits[name].pixels.reshape(-1, 3072) == PIXELS[name]).all()
            assert len({picture.md5 for picture in dataset.pictures[name]}) == len(labels)
        assert dataset.pictures["test"][2].file == "test[2]"


def test_folders_of_pictures_and_zips_are_not_cifar100(tmp_path: Path) -> None:
    for name in ("train", "test", "meta"):
        (tmp_path / name).mkdir()
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04")
    assert not is_cifar100(tmp_path)
    assert not is_cifar100(tmp_path / "a.zip")
    assert not is_cifar100(tmp_path / "missing")


def test_damaged_files_are_an_error_of_one_line(tmp_path: Path) -> None:
    binary = write_binary(tmp_path / "binary")
    with (binary / "test.bin").open("ab") as stream:
        stream.write(b"x")
    message = r"^files: CIFAR-100's files cannot be read: test.bin has 12297 bytes, a multiple of 3074 needed$"
    with pytest.raises(UserError, match=message):
        read_cifar100(binary, "files")
    binary = write_binary(tmp_path / "labels")
    (binary / "fine_label_names.txt").write_text("apple\nbaby\n")
    with pytest.raises(UserError, match="no images, or labels beyond the 2 classes"):
        read_cifar100(binary, "files")
    python = write_python(tmp_path / "python")
    (python / "test").write_bytes(pickle.dumps({b"data": PIXELS["test"], b"labels": []}))
    with pytest.raises(UserError, match=r"^files: CIFAR-100's files cannot be read: no fine_labels$"):
        read_cifar100(python, "files")
    (python / "test").write_bytes(pickle.dumps({b"data": PIXELS["test"][:, :7], b"fine_labels": []}))
    with pytest.raises(UserError, match=r"test: data uint8 \(4, 7\) found, uint8 \(N, 3072\) needed"):
        read_cifar100(python, "files")


def test_an_archive_of_something_else_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").touch()
    with pytest.raises(UserError, match=r"^photos.tar.gz: CIFAR-100's files cannot be read: no meta; pack .* as a zip"):
        read_cifar100(packed(tmp_path / "photos"), "photos.tar.gz")


def test_a_pickle_that_calls_a_function_is_an_error(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "executed"),))

    python = write_python(tmp_path / "python")
    (python / "meta").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError, match="refused: the file wants to run"):
        read_cifar100(python, "files")
    assert not (tmp_path / "executed").exists()
