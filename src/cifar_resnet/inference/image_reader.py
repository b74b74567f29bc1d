"""A user's images, whatever form they come in, as a stream of uint8 (N, 3, 32, 32), in memory that does not grow.

Taken: pictures (PNG, JPEG, WebP, BMP, TIFF, the first frame of a GIF), folders of them at any depth, globs and zips;
arrays uint8 (N, 3, 32, 32) or (N, 32, 32, 3) as .npy or .npz; CIFAR's .bin and its pickled python batches. In folders
and zips only files with a picture's suffix count, hidden ones do not, and links to folders are not followed.

A picture is turned upright as its EXIF says, put on white where it is transparent, scaled so that its shorter side is
32 pixels (bicubic, antialiased), and its middle is taken; one of 32 x 32 pixels stays as it is. A large JPEG is decoded
at a half to an eighth of its size, at 128 pixels or more, which changes no value by more than about 2 of 255.
"""

import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO
from zipfile import ZipFile

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cifar_resnet.data import cifar10
from cifar_resnet.data.dataset import Pixels
from cifar_resnet.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
SIDE = 32
MAX_PIXELS = 50_000_000
MAX_BYTES = 250_000_000  # of a picture, which is read whole
MAX_PICKLED = 20_000  # images of a pickled batch, likewise; the official ones hold 10,000
PIXEL_BYTES = 3 * SIDE * SIDE
SHAPES = ((3, SIDE, SIDE), (SIDE, SIDE, 3))

Piece = tuple[list[str], Pixels]


@dataclass(frozen=True)
class Chunk:
    """Some images in the order they were found: a name for each, pixels uint8 (N, 3, 32, 32), and what was refused
    on the way to them, file and reason. N may be 0."""

    names: list[str]
    pixels: Pixels
    errors: list[str]


def read_images(sources: Sequence[str], root: Path, *, batch_size: int) -> Iterator[Chunk]:
    """Yield all that `sources` hold, at least `batch_size` images or refusals at a time and less than twice as many.

    Args:
        sources: files, folders or globs, relative to `root` or absolute; names are relative to it where they can be.
        batch_size: images that are asked for at a time.
    """
    names: list[str] = []
    parts: list[Pixels] = []
    refused: list[str] = []
    for piece in read_sources(sources, root, batch_size):
        if isinstance(piece, UserError):
            refused.append(str(piece))
        else:
            names += piece[0]
            parts.append(piece[1])
        if len(names) + len(refused) >= batch_size:
            yield Chunk(names, concatenate(parts), refused)
            names, parts, refused = [], [], []
    if names or refused:
        yield Chunk(names, concatenate(parts), refused)


def concatenate(parts: list[Pixels]) -> Pixels:
    return np.concatenate(parts) if parts else np.empty((0, 3, SIDE, SIDE), np.uint8)


def read_sources(sources: Sequence[str], root: Path, batch_size: int) -> Iterator[Piece | UserError]:
    """Yield (names, pixels) of every readable piece of every source, and the refusals in between."""
    for source in sources:
        for path in expand_source(source, root):
            name = printable(str(path.relative_to(root) if path.is_relative_to(root) else path))
            yield from catch_read_errors(name, partial(read_path, path, name, batch_size))


def catch_read_errors(name: str, pieces: Callable[[], Iterator[Piece | UserError]]) -> Iterator[Piece | UserError]:
    """The pieces; an error ends them and becomes a refusal that names the file and the reason."""
    try:
        yield from pieces()
    except Exception as error:  # damaged files make readers and decoders raise whatever they stumble over
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = printable(" ".join(said.partition(" <_io.")[0].split())) or type(error).__name__
        yield UserError(f"{name}: not readable: {reason}")


def expand_source(source: str, root: Path) -> list[Path]:
    """The path that `source` names, or else those that it matches as a glob, in order; if none, itself."""
    path = root / source
    if os.path.lexists(path) or not any(sign in source for sign in "*?["):
        return [path]
    base = Path(path.anchor) if Path(source).is_absolute() else root
    try:
        return sorted(base.glob(str(path.relative_to(base)))) or [path]
    except ValueError:  # a pattern that pathlib refuses
        return [path]


def printable(name: str) -> str:
    """The name with control characters and broken encodings as escapes, so that it stays on one line of any output."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in name)


def read_path(path: Path, name: str, batch_size: int) -> Iterator[Piece | UserError]:
    """Read one file or folder by its kind, which its suffix tells, or the first bytes of a pickle.

    Raises:
        Exception: of whatever kind, if it cannot be read; what cannot be read inside a folder or zip is yielded.
    """
    if path.is_dir():
        yield from read_image_folder(path, name)
        return
    with open_regular_file(path) as stream:
        kind = path.suffix.lower()
        pickled = stream.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        stream.seek(0)
        if kind == ".zip":
            yield from read_zip(stream, name)
        elif kind in (".npy", ".npz"):
            yield from name_rows(name, read_arrays(stream, batch_size, packed=kind == ".npz"))
        elif kind == ".bin":
            yield from name_rows(name, read_bin(stream, batch_size))
        elif pickled:
            yield from name_rows(name, read_pickle(stream))
        else:
            yield [name], read_image(stream)[None]


def open_regular_file(path: Path) -> IO[bytes]:
    """The file, opened; a pipe or a device might never end.

    Raises:
        OSError: if it vanished, may not be read, or is no regular file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("no regular file")
    return path.open("rb")


def name_rows(name: str, batches: Iterator[Pixels]) -> Iterator[Piece]:
    """A name of its own for each image of an array: a.npy[0], a.npy[1], ..."""
    start = 0
    for pixels in batches:
        yield [f"{name}[{row}]" for row in range(start, start + len(pixels))], pixels
        start += len(pixels)


def read_image_folder(folder: Path, name: str) -> Iterator[Piece | UserError]:
    """The pictures of a folder and those below it, by name within each."""
    unread: list[OSError] = []
    count = 0
    for place, subfolders, files in os.walk(folder, onerror=unread.append):
        subfolders.sort()
        for file in sorted(filter(has_image_suffix, files)):
            path = Path(place, file)
            shown = str(PurePosixPath(name, printable(path.relative_to(folder).as_posix())))
            yield from catch_read_errors(shown, partial(single_image, shown, partial(open_regular_file, path)))
            count += 1
    yield from (UserError(f"{printable(str(error.filename))}: not readable: {error.strerror}") for error in unread)
    if count == 0:
        raise ValueError(f"holds no image ({', '.join(SUFFIXES)})")


def read_zip(stream: IO[bytes], name: str) -> Iterator[Piece | UserError]:
    """The pictures of a zip in its own order, unpacked one by one in memory."""
    count = 0
    with ZipFile(stream) as archive:
        for member in archive.infolist():
            if has_image_suffix(member.filename) and not member.is_dir():
                shown = f"{name}/{printable(member.filename)}"
                yield from catch_read_errors(shown, partial(single_image, shown, partial(archive.open, member)))
                count += 1
    if count == 0:
        raise ValueError(f"holds no image ({', '.join(SUFFIXES)})")


def has_image_suffix(name: str) -> bool:
    file = PurePosixPath(name)
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".")


def single_image(name: str, opened: Callable[[], IO[bytes]]) -> Iterator[Piece]:
    with opened() as stream:
        yield [name], read_image(stream)[None]


def read_image(stream: IO[bytes]) -> Pixels:
    """uint8 (3, 32, 32) from a picture of any size and mode, as this module's first lines say.

    Raises:
        ValueError: if it is too large, which shows before it is decoded; any other exception if it is damaged.
    """
    content = BytesIO(read_at_most(stream, MAX_BYTES))
    with warnings.catch_warnings(action="ignore"), open_image(content) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(f"{opened.width} x {opened.height} pixels, {MAX_PIXELS:,} in all allowed")
        opened.draft(None, (4 * SIDE, 4 * SIDE))  # JPEG only; 12 megapixels in 33 instead of 169 ms
        upright = to_uint8(ImageOps.exif_transpose(opened))
    transparent = upright.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in upright.info
    converted = upright.convert("RGBA" if transparent else "RGB")
    small = ImageOps.fit(converted, (SIDE, SIDE), Image.Resampling.BICUBIC)
    if transparent:
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))


def open_image(content: IO[bytes]) -> Image.Image:
    try:
        return Image.open(content, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"no picture of a kind that is taken ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise ValueError(f"too many pixels, {MAX_PIXELS:,} in all allowed") from None


def read_at_most(stream: IO[bytes], most: int) -> bytes:
    content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"more than {most:,} bytes")
    return content


def to_uint8(found: Image.Image) -> Image.Image:
    """Grey values of 16 bits, or floats from 0 to 1, as eight bits; other modes as they are.

    Raises:
        ValueError: if the values lie outside, so that nobody can tell what is white.
    """
    if found.mode[0] not in "IF":
        return found
    values, white = np.asarray(found), 1 if found.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= white):
        raise ValueError(f"grey values {values.min()} to {values.max()} found, 0 to {white} needed")
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))


def read_arrays(stream: IO[bytes], batch_size: int, *, packed: bool) -> Iterator[Pixels]:
    """The images of a .npy or, `packed`, of a .npz: the array named `images` or its only one."""
    if not packed:
        yield from array_batches(stream, batch_size)
        return
    with ZipFile(stream) as archive:
        members = archive.namelist()
        if len(members) != 1 and "images.npy" not in members:
            raise ValueError(f"{len(members)} arrays found, one or one named images needed")
        with archive.open(members[0] if len(members) == 1 else "images.npy") as content:
            yield from array_batches(content, batch_size)


def array_batches(stream: IO[bytes], batch_size: int) -> Iterator[Pixels]:
    """The content of a .npy, read as it comes; a pickled one is refused by its type before anything is read.

    Raises:
        ValueError: if it is no .npy, not uint8 (N, 3, 32, 32) or (N, 32, 32, 3), or ends too early.
    """
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(stream)
    if dtype != np.uint8 or len(shape) != 4 or shape[1:] not in SHAPES or shape[0] < 1:
        raise ValueError(f"{dtype} {shape} found, uint8 (N, 3, 32, 32) or (N, 32, 32, 3) needed")
    if fortran:
        raise ValueError("in Fortran order; save it with np.ascontiguousarray")
    for start in range(0, shape[0], batch_size):
        count = min(batch_size, shape[0] - start)
        content = stream.read(count * PIXEL_BYTES)
        if len(content) != count * PIXEL_BYTES:
            raise ValueError(f"it ends before its {shape[0]:,} images do")
        array = np.frombuffer(content, np.uint8).reshape(count, *shape[1:])
        yield array if shape[1:] == SHAPES[0] else np.ascontiguousarray(array.transpose(0, 3, 1, 2))


def read_bin(stream: IO[bytes], batch_size: int) -> Iterator[Pixels]:
    """The images of a file of CIFAR's binary version, whatever their labels.

    Raises:
        ValueError: if it does not consist of whole records.
    """
    size = stream.seek(0, os.SEEK_END)
    if size == 0 or size % cifar10.RECORD_BYTES:
        raise ValueError(f"{size} bytes found, a multiple of {cifar10.RECORD_BYTES} needed")
    stream.seek(0)
    while content := stream.read(batch_size * cifar10.RECORD_BYTES):
        records = np.frombuffer(content, np.uint8).reshape(-1, cifar10.RECORD_BYTES)
        yield np.ascontiguousarray(records[:, 1:]).reshape(-1, *SHAPES[0])


def read_pickle(stream: IO[bytes]) -> Iterator[Pixels]:
    """The images of a batch of CIFAR's python version; whatever else a pickle asks for is refused, not run.

    Raises:
        ValueError: if its data are not images; any other exception if it is damaged.
    """
    batch = cifar10.unpickle_batch(read_at_most(stream, MAX_PICKLED * cifar10.RECORD_BYTES))
    data = np.asanyarray(batch[b"data"] if b"data" in batch else batch["data"])
    if data.dtype != np.uint8 or data.shape[1:] != (PIXEL_BYTES,) or not 0 < len(data) <= MAX_PICKLED:
        needed = f"uint8 (N, {PIXEL_BYTES}), N up to {MAX_PICKLED:,}, needed"
        raise ValueError(f"data {data.dtype} {data.shape} found, {needed}")
    yield np.ascontiguousarray(data).reshape(-1, *SHAPES[0])
