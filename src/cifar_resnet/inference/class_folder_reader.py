"""Read own pictures with their classes, from a folder or zip with a folder for each class."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np

from cifar_resnet.data.class_folders import place_pictures
from cifar_resnet.data.dataset import Images, Pixels
from cifar_resnet.data.raw_dataset import SPLITS, Picture, RawDataset
from cifar_resnet.errors import UserError
from cifar_resnet.inference.array_reader import read_at_most
from cifar_resnet.inference.image_decoder import MAX_BYTES
from cifar_resnet.inference.image_reader import (
    Member,
    concatenate,
    folder_members,
    is_picture,
    printable,
    read_picture,
    skipped_text,
    walk_error_text,
    zip_members,
)
from cifar_resnet.progress import progress_bar


@dataclass
class Skipped:
    """Messages about pictures that are skipped, printed as they arise, and the number of files that are no pictures.

    strict: whether a skipped picture is an error instead.
    """

    strict: bool
    messages: list[str] = field(default_factory=list)
    ignored: int = 0

    def add(self, message: str) -> None:
        if self.strict:
            raise UserError(f"{message}; download.strict: false skips such pictures")
        print(f"skipped: {message}", file=sys.stderr)
        self.messages.append(message)

    def summary(self) -> str:
        return skipped_text(len(self.messages), self.ignored)


def read_class_folders(path: Path, source: str, skipped: Skipped) -> RawDataset:
    """Read every picture, sorted by split, class and path.

    Args:
        path: a folder or a zip.
        source: for messages.

    Raises:
        UserError: as in `place_pictures`; if the path is neither a folder nor a zip; if all pictures of a class are
            unreadable; with `skipped.strict`, if a picture is skipped.
    """
    with open_members(path, source, skipped) as members:
        placements = place_pictures([file for file, _ in members], source)
        placed = []
        for member, placement in zip(members, placements, strict=True):
            if placement is None:
                skipped.add(f"{source}/{member[0]}: not in the folder of a class")
            else:
                placed.append((SPLITS.index(placement.split), placement.class_name, *member))
        placed.sort(key=lambda picture: picture[:3])
        return read_placed(placed, source, skipped)


def is_visible_picture(member: Member, skipped: Skipped) -> bool:
    """Whether a file is a picture and not hidden; others are counted."""
    is_visible = is_picture(*member)
    skipped.ignored += not is_visible
    return is_visible


@contextmanager
def open_members(path: Path, source: str, skipped: Skipped) -> Iterator[list[Member]]:
    """The pictures below a folder or in a zip, which stays open during the block."""
    if path.is_dir():
        walk_errors: list[OSError] = []
        members = [member for member in folder_members(path, walk_errors) if is_visible_picture(member, skipped)]
        for error in walk_errors:
            skipped.add(walk_error_text(error))
        for link in sorted(link for link in path.rglob("*") if link.is_symlink() and link.is_dir()):
            skipped.add(f"{source}/{printable(link.relative_to(path).as_posix())}: a link to a folder")
        for folder in folders_without_picture(path, members):
            skipped.add(f"{source}/{folder}: a folder without pictures")
        yield members
    elif path.is_file() and is_zipfile(path):
        try:
            with ZipFile(path) as archive:
                pictures = [member for member in zip_members(archive) if is_visible_picture(member, skipped)]
                yield without_common_folder(pictures)
        except BadZipFile as error:
            raise UserError(f"{source}: not readable: {error}") from None
    else:
        found = "not a folder, an undamaged zip or an archive of CIFAR-100" if path.exists() else "not found"
        raise UserError(f"{source}: {found}; download.folder names the pictures")


def folders_without_picture(path: Path, pictures: list[Member]) -> list[str]:
    """Folders beside those of the pictures that have no picture in them, for example an empty folder of a class."""
    used = {folder for file, _ in pictures for folder in PurePosixPath(file).parents}
    walked = (PurePosixPath(printable(Path(folder).relative_to(path).as_posix())) for folder, *_ in os.walk(path))
    empty = (folder for folder in walked if folder not in used and folder.parent in used)
    return sorted(str(folder) for folder in empty if not folder.name.startswith("."))


def without_common_folder(members: list[Member]) -> list[Member]:
    """The pictures of a zip without the folder that was packed, if there is only one and no picture beside it."""
    paths = [(file.split("/"), open_stream) for file, open_stream in members]
    if len({path[0] for path, _ in paths}) != 1 or any(len(path) == 1 for path, _ in paths):
        return members
    return [("/".join(path[1:]), open_stream) for path, open_stream in paths]


def read_placed(
    placed: list[tuple[int, str, str, Callable[[], IO[bytes]]]], source: str, skipped: Skipped
) -> RawDataset:
    """Decode and hash pictures, each with the index of its split, its class, its path, and how to open it."""
    classes = tuple(sorted({class_name for _, class_name, *_ in placed}))
    indices = {class_name: index for index, class_name in enumerate(classes)}
    splits = [SPLITS[split] for split in sorted({split for split, *_ in placed})]
    pixels: dict[str, list[Pixels]] = {name: [] for name in splits}
    labels: dict[str, list[int]] = {name: [] for name in splits}
    pictures: dict[str, list[Picture]] = {name: [] for name in splits}
    with progress_bar("reading pictures", len(placed)) as progress:
        for count, (split, class_name, file, open_stream) in enumerate(placed, 1):
            try:
                image, md5 = decode_and_hash(f"{source}/{file}", open_stream)
            except UserError as error:
                skipped.add(str(error))
                continue
            pixels[SPLITS[split]].append(image[None])
            labels[SPLITS[split]].append(indices[class_name])
            pictures[SPLITS[split]].append(Picture(file, md5))
            progress.update(count, file)
    unreadable = set(range(len(classes))) - {label for rows in labels.values() for label in rows}
    if unreadable:
        raise UserError(f"{source}: no picture of class {classes[min(unreadable)]} is readable")
    images = {name: Images(concatenate(pixels[name]), np.asarray(labels[name], dtype=np.int64)) for name in splits}
    return RawDataset(source, classes, images, pictures)


def decode_and_hash(name: str, open_stream: Callable[[], IO[bytes]]) -> tuple[Pixels, str]:
    """(uint8 (3, 32, 32), MD5 of the file); raises as `read_picture` does."""
    contents = []

    def open_content() -> IO[bytes]:
        with open_stream() as stream:
            contents.append(read_at_most(stream, MAX_BYTES))
        return BytesIO(contents[0])

    pixels = read_picture(name, open_content)
    return pixels, hashlib.md5(contents[0], usedforsecurity=False).hexdigest()
