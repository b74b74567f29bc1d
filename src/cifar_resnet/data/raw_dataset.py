"""data/raw of own pictures: the arrays of each split, classes.json, and manifest.csv, a row for each picture."""

import csv
from dataclasses import dataclass
from pathlib import Path

from cifar_resnet.data.dataset import Images, read_split, write_split
from cifar_resnet.errors import UserError
from cifar_resnet.files import atomic_write, read_object, read_rows, write_json

SPLITS = ("train", "validation", "test")
CLASSES_FILE = "classes.json"
MANIFEST_FILE = "manifest.csv"
FILES = (CLASSES_FILE, MANIFEST_FILE, *(f"{split}_{array}.npy" for split in SPLITS for array in ("images", "labels")))
COLUMNS = ("split", "class", "file", "md5")


@dataclass(frozen=True)
class Picture:
    """Where an image comes from: its path below the source, and the MD5 of its file."""

    file: str
    md5: str


@dataclass(frozen=True)
class RawDataset:
    """Images and labels before `preprocess`.

    source: the folder or file that they come from.
    splits: "train" and, if the source has them, "validation" and "test"; the labels are indices of `classes`.
    pictures: by split, one for each image.
    is_published: whether the split is that of a published benchmark, which nobody changes.
    """

    source: str
    classes: tuple[str, ...]
    splits: dict[str, Images]
    pictures: dict[str, list[Picture]]
    is_published: bool = False


def write_raw_dataset(folder: Path, dataset: RawDataset) -> None:
    """Write the files that `read_raw_dataset` reads; classes.json is the last one."""
    for name, images in dataset.splits.items():
        write_split(folder, name, images)
    with (
        atomic_write(folder / MANIFEST_FILE) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(COLUMNS)
        for name, images in dataset.splits.items():
            for label, picture in zip(images.labels.tolist(), dataset.pictures[name], strict=True):
                table.writerow((name, dataset.classes[label], picture.file, picture.md5))
    description = {"source": dataset.source, "is_published": dataset.is_published, "splits": list(dataset.splits)}
    write_json(folder / CLASSES_FILE, description | {"classes": dataset.classes})


def has_raw_dataset(folder: Path) -> bool:
    """Whether the folder has own pictures, and not CIFAR-10's files."""
    return (folder / CLASSES_FILE).is_file()


def read_raw_dataset(folder: Path) -> RawDataset:
    """Read what `write_raw_dataset` has written.

    Raises:
        UserError: if a file is missing or damaged.
    """
    description = read_object(folder / CLASSES_FILE, "source", "is_published", "splits", "classes")
    splits = {name: read_split(folder, name) for name in description["splits"]}
    pictures: dict[str, list[Picture]] = {name: [] for name in splits}
    for row in read_rows(folder / MANIFEST_FILE, *COLUMNS):
        pictures.setdefault(row["split"], []).append(Picture(row["file"], row["md5"]))
    for name, images in splits.items():
        if len(images) != len(pictures[name]):
            raise UserError(
                f"{folder / MANIFEST_FILE}: {len(pictures[name])} pictures in {name} found, {len(images)} expected; "
                "run `dvc repro -f download`"
            )
    return RawDataset(
        description["source"], tuple(description["classes"]), splits, pictures, description["is_published"]
    )
