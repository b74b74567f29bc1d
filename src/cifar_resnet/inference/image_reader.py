"""Read a user's images as a stream of uint8 arrays (N, 3, 32, 32), in bounded memory.

`cifar-resnet predict --help` describes the accepted inputs and how a picture becomes 32 x 32 pixels.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO
from zipfile import ZipFile, ZipInfo

import numpy as np

from cifar_resnet.data.dataset import Pixels
from cifar_resnet.errors import UserError
from cifar_resnet.inference.array_reader import SIDE, read_arrays, read_bin, read_pickle
from cifar_resnet.inference.image_decoder import read_image
from cifar_resnet.inference.image_formats import FORMATS, HEAD_BYTES, has_picture_suffix, picture_format

Batch = tuple[list[str], Pixels]  # N names, uint8 (N, 3, 32, 32)
ZIP_ENCRYPTED, ZIP_UTF8 = 0x1, 0x800  # flags of a file, and of its name
PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # protocols 2 to 5
Member = tuple[str, Callable[[], IO[bytes]]]  # path below a folder or zip, and how to open the file
Item = Batch | UserError | None  # None: a file that is not a picture, in a folder or zip


@dataclass(frozen=True)
class Chunk:
    """N names, pixels uint8 (N, 3, 32, 32), and since the previous chunk the read errors, in order, and the number of
    files that are not pictures. N may be 0.
    """

    names: list[str]
    pixels: Pixels
    errors: list[str]
    ignored: int = 0


def skipped_text(skipped: int, ignored: int) -> str:
    """For example ", 1 skipped, 2 other files ignored"; empty without such files."""
    files = "file" if ignored == 1 else "files"
    return (f", {skipped:,} skipped" if skipped else "") + (f", {ignored:,} other {files} ignored" if ignored else "")


def read_images(sources: Sequence[str], root: Path, *, batch_size: int) -> Iterator[Chunk]:
    """Yield the images of `sources` in chunks.

    Args:
        sources: files, folders or globs, relative to `root` or absolute; names are relative to `root` where possible.
        batch_size: a chunk has at least this many images and errors (the last may have fewer), and less than twice as
            many.
    """
    names: list[str] = []
    parts: list[Pixels] = []
    errors: list[str] = []
    ignored = 0
    for item in read_sources(sources, root, batch_size):
        if item is None:
            ignored += 1
        elif isinstance(item, UserError):
            errors.append(str(item))
        else:
            names += item[0]
            parts.append(item[1])
        if len(names) + len(errors) >= batch_size:
            yield Chunk(names, concatenate(parts), errors, ignored)
            names, parts, errors, ignored = [], [], [], 0
    if names or errors or ignored:
        yield Chunk(names, concatenate(parts), errors, ignored)


def concatenate(parts: list[Pixels]) -> Pixels:
    return np.concatenate(parts) if parts else np.empty((0, 3, SIDE, SIDE), np.uint8)


def read_sources(sources: Sequence[str], root: Path, batch_size: int) -> Iterator[Item]:
    """Yield the images of every source, and read errors in between."""
    for source in sources:
        for path in expand_source(source, root):
            name = printable(str(path.relative_to(root) if path.is_relative_to(root) else path))
            yield from catch_read_errors(name, partial(read_path, path, name, batch_size))


def catch_read_errors(name: str, read: Callable[[], Iterator[Item]]) -> Iterator[Item]:
    """Yield what `read` yields; an exception becomes a final UserError with the file's name and the reason."""
    try:
        yield from read()
    except Exception as error:  # readers and decoders raise exceptions of any type on damaged files
        message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = printable(" ".join(message.partition(" <_io.")[0].split())) or type(error).__name__
        yield UserError(f"{name}: not readable: {reason}")


def expand_source(source: str, root: Path) -> list[Path]:
    """The path if it exists, otherwise the sorted matches of the glob, or the path itself without any match.

    A match in a folder that matches as well is skipped: all of the folder is read. As in a shell, `*` does not match
    hidden names; only a part of the pattern that starts with a dot does.
    """
    path = root / source
    if os.path.lexists(path) or not any(character in source for character in "*?["):
        return [path]
    base = Path(path.anchor) if Path(source).is_absolute() else root
    try:
        pattern = path.relative_to(base)
        matches = sorted(base.glob(str(pattern)))
    except ValueError:  # pathlib rejects the pattern
        return [path]
    dotted = ["..", *(part for part in pattern.parts if part.startswith("."))]
    matches = [match for match in matches if not any(is_hidden(part, dotted) for part in match.relative_to(base).parts)]
    folders = {match for match in matches if match.is_dir()}
    return [match for match in matches if folders.isdisjoint(match.parents)] or [path]


def is_hidden(name: str, dotted: list[str]) -> bool:
    """Whether a name starts with a dot and none of the patterns that do so matches it."""
    return name.startswith(".") and not any(fnmatch(name, pattern) for pattern in dotted)


def printable(name: str) -> str:
    """The name with control characters and invalid encodings escaped, so that it stays on one line of any output."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in name
    )


def read_path(path: Path, name: str, batch_size: int) -> Iterator[Item]:
    """Read a file according to its first bytes, CIFAR's .bin files and .npz files according to their suffix.

    Errors inside a folder or zip are yielded.

    Raises:
        Exception: of any type, if the path itself cannot be read.
    """
    if path.is_dir():
        yield from read_image_folder(path, name)
        return
    with open_regular_file(path) as stream:
        suffix, head = path.suffix.lower(), stream.read(HEAD_BYTES)
        stream.seek(0)
        if not head:
            raise ValueError("empty file")
        if picture_format(head) is not None:
            yield [name], read_image(stream)[None]
        elif suffix == ".npz":
            yield from name_rows(name, read_arrays(stream, batch_size, packed=True))
        elif suffix == ".npy" or head.startswith(b"\x93NUMPY"):
            yield from name_rows(name, read_arrays(stream, batch_size, packed=False))
        elif suffix == ".bin":
            yield from name_rows(name, read_bin(stream, batch_size))
        elif suffix == ".zip" or head.startswith(b"PK\x03\x04"):
            yield from read_zip(stream, name)
        elif head[:2] in PICKLE_STARTS:
            yield from name_rows(name, read_pickle(stream))
        else:
            yield [name], read_image(stream)[None]


def open_regular_file(path: Path) -> IO[bytes]:
    """Open a regular file: a pipe or device might never end.

    Raises:
        OSError: if the file is missing, not readable or not a regular file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a regular file")
    return path.open("rb")


def name_rows(name: str, batches: Iterator[Pixels]) -> Iterator[Batch]:
    """Name each image of an array: a.npy[0], a.npy[1], ..."""
    start = 0
    for pixels in batches:
        yield [f"{name}[{row}]" for row in range(start, start + len(pixels))], pixels
        start += len(pixels)


def read_image_folder(folder: Path, name: str) -> Iterator[Item]:
    """The files of a folder and its subfolders, sorted by name in each."""
    walk_errors: list[OSError] = []
    count = 0
    for file, open_stream in folder_members(folder, walk_errors):
        for item in read_member(file if name == "." else f"{name}/{file}", file, open_stream):
            count += item is not None
            yield item
    yield from (UserError(walk_error_text(error)) for error in walk_errors)
    require_picture(count)


def folder_members(folder: Path, walk_errors: list[OSError]) -> Iterator[Member]:
    """The files below a folder, sorted by name in each subfolder; links to folders are not followed."""
    for directory, subfolders, files in os.walk(folder, onerror=walk_errors.append):
        subfolders.sort()
        for file in sorted(files):
            path = Path(directory, file)
            yield printable(path.relative_to(folder).as_posix()), partial(open_regular_file, path)


def walk_error_text(error: OSError) -> str:
    return f"{printable(str(error.filename))}: not readable: {error.strerror}"


def read_zip(stream: IO[bytes], name: str) -> Iterator[Item]:
    """The files of a zip in the order of its directory, unpacked one by one in memory."""
    count = 0
    with ZipFile(stream) as archive:
        for file, open_stream in zip_members(archive):
            for item in read_member(f"{name}/{file}", file, open_stream):
                count += item is not None
                yield item
    require_picture(count)


def zip_members(archive: ZipFile) -> Iterator[Member]:
    """The files of a zip in the order of its directory."""
    for member in archive.infolist():
        if not member.is_dir():
            yield printable(zip_name(member)), partial(open_zip_member, archive, member)


def open_zip_member(archive: ZipFile, member: ZipInfo) -> IO[bytes]:
    """Open a file of a zip.

    Raises:
        ValueError: if it is encrypted.
        Exception: of any type, if the zip is damaged.
    """
    if member.flag_bits & ZIP_ENCRYPTED:
        raise ValueError("encrypted in the zip; unpack the zip with its password and use the folder")
    return archive.open(member)


def require_picture(count: int) -> None:
    if count == 0:
        raise ValueError(f"contains no picture ({', '.join(FORMATS)})")


def zip_name(member: ZipInfo) -> str:
    """The name of a zip's file. Linux and macOS write UTF-8 without the flag for it; `zipfile` reads it as cp437."""
    if member.flag_bits & ZIP_UTF8:
        return member.filename
    try:
        return member.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return member.filename


def read_member(name: str, file: str, open_stream: Callable[[], IO[bytes]]) -> Iterator[Item]:
    """The picture of a file in a folder or zip, its read error, or None if it is hidden or not a picture."""
    if is_picture(file, open_stream):
        yield from catch_read_errors(name, partial(single_image, name, open_stream))
    else:
        yield None


def is_picture(file: str, open_stream: Callable[[], IO[bytes]]) -> bool:
    """Whether a file in a folder or zip is a picture by its suffix or its first bytes, and not hidden.

    Args:
        file: path below the folder or in the zip; a name that starts with a dot hides a file, or all files of a folder.
    """
    is_hidden = any(part.startswith(".") for part in PurePosixPath(file).parts)
    return not is_hidden and (has_picture_suffix(file) or starts_as_picture(open_stream))


def starts_as_picture(open_stream: Callable[[], IO[bytes]]) -> bool:
    """Whether the first bytes are those of a picture; False for a file that cannot be opened."""
    try:
        with open_stream() as stream:
            return picture_format(stream.read(HEAD_BYTES)) is not None
    except Exception:  # of any type, from a damaged zip
        return False


def single_image(name: str, open_stream: Callable[[], IO[bytes]]) -> Iterator[Batch]:
    with open_stream() as stream:
        yield [name], read_image(stream)[None]


def read_picture(name: str, open_stream: Callable[[], IO[bytes]]) -> Pixels:
    """Decode one picture file to uint8 (3, 32, 32).

    Raises:
        UserError: if it cannot be read; the message starts with `name`.
    """
    [image] = catch_read_errors(name, partial(single_image, name, open_stream))
    if isinstance(image, UserError):
        raise image
    assert image is not None  # only folders and zips yield None
    (pixels,) = image[1]
    return np.asarray(pixels)
