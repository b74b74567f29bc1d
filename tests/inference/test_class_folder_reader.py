import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_images
from pictures import decoded
from PIL import Image

from cifar_resnet.data.raw_dataset import RawDataset
from cifar_resnet.errors import UserError
from cifar_resnet.inference.class_folder_reader import Skipped, read_class_folders

PIXELS = tiny_images(10, seed=4).pixels
FILES = ("cat/a.png", "cat/deep/er/b.jpg", "dog/c.webp", "dog/d.png", "dog/e.JPG")


def write_pictures(folder: Path, *files: str, start: int = 0) -> Path:
    """A different picture for each name, with 40 to 80 pixels per side."""
    for number, file in enumerate(files, start):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(PIXELS[number].transpose(1, 2, 0))
        picture.resize((40 + number, 80 - number), Image.Resampling.BICUBIC).save(folder / file)
    return folder


def pack(folder: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def read(path: Path, *, strict: bool = False) -> tuple[RawDataset, Skipped]:
    skipped = Skipped(strict)
    return read_class_folders(path, path.name, skipped), skipped


def test_pictures_are_scaled_as_in_predict_and_sorted_by_class_and_path(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", *FILES)
    dataset, skipped = read(photos)
    assert (dataset.source, dataset.classes, list(dataset.splits)) == ("photos", ("cat", "dog"), ["train"])
    assert dataset.splits["train"].labels.tolist() == [0, 0, 1, 1, 1]
    contents = [(photos / file).read_bytes() for file in FILES]
    assert (dataset.splits["train"].pixels == np.stack([decoded(content) for content in contents])).all()
    manifest = [(picture.file, picture.md5) for picture in dataset.pictures["train"]]
    assert manifest == [(file, hashlib.md5(content).hexdigest()) for file, content in zip(FILES, contents, strict=True)]
    assert skipped.summary() == ""


def test_an_empty_folder_of_a_class_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_pictures(tmp_path / "photos", *FILES)
    for folder in ("bird/2024/may", "notes", ".cache", "cat/deep/empty"):
        (photos / folder).mkdir(parents=True)
    (photos / "notes/readme.txt").write_text("two classes", encoding="utf-8")
    dataset, skipped = read(photos)
    assert dataset.classes == ("cat", "dog")
    expected = [f"skipped: photos/{name}: a folder without pictures" for name in ("bird", "cat/deep/empty", "notes")]
    assert capsys.readouterr().err.splitlines() == expected
    assert skipped.summary() == ", 3 skipped, 1 other file ignored"


@pytest.mark.parametrize("prefix", ["", "photos/", "photos/train/"])
def test_a_zip_gives_the_same_images_as_the_folder(tmp_path: Path, prefix: str) -> None:
    photos = write_pictures(tmp_path / "photos", *FILES)
    archive = pack(photos, tmp_path / "photos.zip", prefix)
    with zipfile.ZipFile(archive, "a") as stream:
        stream.writestr("__MACOSX/photos/cat/._a.png", b"\0\5\x16\7")
        stream.writestr("readme.txt", "two classes")
    from_folder, from_zip = read(photos)[0], read(archive)[0]
    assert from_zip.classes == from_folder.classes
    assert (from_zip.splits["train"].pixels == from_folder.splits["train"].pixels).all()
    assert [picture.md5 for picture in from_zip.pictures["train"]] == [
        picture.md5 for picture in from_folder.pictures["train"]
    ]


def test_the_folders_of_a_split_are_read_as_splits(tmp_path: Path) -> None:
    files = ("train/dog/a.png", "train/cat/b.png", "test/cat/c.png", "test/dog/d.png", "validation/cat/e.png")
    photos = write_pictures(tmp_path / "photos", *files)
    for path in (photos, pack(photos, tmp_path / "photos.zip", "photos/")):
        dataset, _ = read(path)
        assert list(dataset.splits) == ["train", "validation", "test"]
        assert {name: images.labels.tolist() for name, images in dataset.splits.items()} == {
            "train": [0, 1],
            "validation": [0],
            "test": [0, 1],
        }
        assert [picture.file.rsplit("/", 1)[1] for picture in dataset.pictures["train"]] == ["b.png", "a.png"]


def test_unreadable_and_stray_pictures_are_reported_and_skipped_and_other_files_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_pictures(tmp_path / "photos", *FILES, "f.png", ".thumbnails/cat/g.png", "elsewhere/h.png")
    (photos / "elsewhere").rename(tmp_path / "elsewhere")
    (photos / "bird").symlink_to(tmp_path / "elsewhere")
    (photos / "cat/broken.jpg").write_bytes(b"text")
    (photos / "cat/notes.txt").write_text("text")
    dataset, skipped = read(photos)
    assert [picture.file for picture in dataset.pictures["train"]] == list(FILES)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "skipped: photos/bird: a link to a folder"
    assert lines[1] == "skipped: photos/f.png: not in the folder of a class"
    assert lines[2].startswith("skipped: photos/cat/broken.jpg: not readable: not a picture in a supported format")
    assert skipped.summary() == ", 3 skipped, 2 other files ignored"


@pytest.mark.parametrize("fault", ["broken", "stray", "link"])
def test_with_strict_a_picture_that_would_be_skipped_is_an_error(tmp_path: Path, fault: str) -> None:
    photos = write_pictures(tmp_path / "photos", *FILES)
    path = {"broken": photos / "cat/broken.jpg", "stray": photos / "stray.png", "link": photos / "link"}[fault]
    if fault == "link":
        path.symlink_to(tmp_path)
    else:
        path.write_bytes(b"text")
    with pytest.raises(UserError, match=rf"^photos/.*{fault}.*: .*; download.strict: false skips such pictures$"):
        read(photos, strict=True)
    assert read(photos)[1].summary() == ", 1 skipped"


def test_a_class_whose_pictures_are_all_unreadable_is_an_error(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", *FILES)
    (photos / "bird").mkdir()
    (photos / "bird/a.png").write_bytes(b"text")
    with pytest.raises(UserError, match=r"^photos: no picture of class bird is readable$"):
        read(photos)


def test_what_is_neither_a_folder_nor_a_zip_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file.rar").write_bytes(b"Rar!")
    (tmp_path / "empty").mkdir()
    pack(tmp_path / "empty", tmp_path / "empty.zip")
    (tmp_path / "damaged.zip").write_bytes(
        pack(tmp_path, tmp_path / "a.zip").read_bytes().replace(b"PK\1\2", b"PK\1\3")
    )
    messages = {
        "file.rar": "not a folder, an undamaged zip or an archive of CIFAR-100; download.folder names the pictures",
        "missing": "not found; download.folder names the pictures",
        "empty": "contains no picture; needed are pictures in empty/<class>/, for two classes",
        "empty.zip": "contains no picture; needed are pictures in empty.zip/<class>/, for two classes",
        "damaged.zip": "not readable: Bad magic number for central directory",
    }
    for name, message in messages.items():
        with pytest.raises(UserError) as caught:
            read(tmp_path / name)
        assert str(caught.value) == f"{name}: {message}"
