"""Which split and class a picture belongs to, according to the folders it is in.

Accepted: <class>/..., or {train,test}/<class>/... where the source has a split, with or without validation.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from cifar_resnet.errors import UserError

SPLIT_FOLDERS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation",
                 "val": "validation"}  # fmt: skip


@dataclass(frozen=True)
class Placement:
    """The split and the class of a picture."""

    split: str
    class_name: str


def place_pictures(files: Sequence[str], source: str) -> list[Placement | None]:
    """The placement of every picture; None for a picture that is not in the folder of a class.

    Args:
        files: paths below `source`, with slashes.
        source: for messages.

    Raises:
        UserError: if there are no pictures, no classes or a single class, if two classes differ only in case, or if
            folders of a split are mixed with others.
    """
    if not files:
        raise UserError(f"{source}: contains no picture; needed are pictures in {source}/<class>/, for two classes")
    paths = [file.split("/") for file in files]
    split_depth = 1 if has_split_folders({path[0] for path in paths if len(path) > 1}, source) else 0
    placements = [place_picture(path, split_depth) for path in paths]
    classes = sorted({placement.class_name for placement in placements if placement is not None})
    if not classes:
        folder = "train/<class>" if split_depth else "<class>"
        raise UserError(f"{source}: no picture is in the folder of a class; needed are pictures in {source}/{folder}/")
    check_class_names(classes, source)
    if len(classes) == 1:
        raise UserError(f"{source}: a single class found ({classes[0]}), at least two needed{hint(classes[0], paths)}")
    return placements


def has_split_folders(folders: set[str], source: str) -> bool:
    """Whether the folders are those of a split, and not classes.

    Raises:
        UserError: if there are others beside train and test, or if there is no train.
    """
    others = sorted(folder for folder in folders if folder.lower() not in SPLIT_FOLDERS)
    splits = sorted(SPLIT_FOLDERS[folder.lower()] for folder in folders - set(others))
    if not splits or (others and not {"train", "test"} <= set(splits)):
        return False
    if others:
        raise UserError(
            f"{source}: {', '.join(others)} found beside the folders train and test, which only validation may join; "
            "move it elsewhere"
        )
    if splits.count("train") != 1 or len(splits) != len(set(splits)):
        raise UserError(
            f"{source}: the folders {', '.join(sorted(folders))} found; a split has one folder train, and at most "
            "one validation and one test"
        )
    return True


def place_picture(path: list[str], split_depth: int) -> Placement | None:
    """`path`: the names of the folders and of the file."""
    if len(path) < split_depth + 2:
        return None
    split = SPLIT_FOLDERS[path[0].lower()] if split_depth else "train"
    return Placement(split, unicodedata.normalize("NFC", path[split_depth]))


def check_class_names(classes: list[str], source: str) -> None:
    names: dict[str, str] = {}
    for name in classes:
        other = names.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(
                f"{source}: the classes {other} and {name} differ only in case; rename or merge one of them"
            )


def hint(name: str, paths: list[list[str]]) -> str:
    """Advice for a folder whose only folder has folders itself."""
    subfolders = {path[1] for path in paths if path[0] == name and len(path) > 2}
    return f"; if the folders in {name} are the classes, add /{name} to download.folder" if len(subfolders) > 1 else ""
