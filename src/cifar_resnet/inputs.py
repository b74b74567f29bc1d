"""A user's images as uint8 (N, 3, 32, 32), each refusal naming the file and the reason.

A photograph is scaled so that its shorter side is 32 pixels (bicubic, antialiased) and its middle is taken.
"""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cifar_resnet import cifar10
from cifar_resnet.errors import UserError
from cifar_resnet.images import Pixels

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SIDE = 32
MAX_PIXELS = 50_000_000


def read(path: Path) -> tuple[Pixels, list[str]]:
    """Read a folder of images (recursively), one image, a .npy, .npz or CIFAR .bin; returns (pixels, a name for each).

    Raises:
        UserError: if there is nothing to read, or something cannot be read.
    """
    if path.is_dir():
        return read_folder(path)
    if not path.exists():
        raise UserError(f"{path}: not found; predict.input takes a folder of images, an image, .npy, .npz or .bin")
    if path.suffix == ".bin":
        pixels = cifar10.read_records(path).pixels
    elif path.suffix in (".npy", ".npz"):
        pixels = from_array(path, read_array(path))
    else:
        return read_image(path)[None], [path.name]
    return pixels, [path.name] * len(pixels)


def read_folder(folder: Path) -> tuple[Pixels, list[str]]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise UserError(f"{folder}: holds no image ({', '.join(SUFFIXES)})")
    return np.stack([read_image(file) for file in files]), [str(file.relative_to(folder)) for file in files]


def read_image(file: Path) -> Pixels:
    """One picture of any size and mode as uint8 (3, 32, 32), upright, transparent parts on white."""
    try:
        with Image.open(file) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise UserError(f"{file}: {picture.width} x {picture.height} pixels, {MAX_PIXELS:,} in all allowed")
            upright = ImageOps.exif_transpose(picture)
            if upright.mode in ("LA", "PA", "RGBA") or "transparency" in upright.info:
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, upright.convert("RGBA"))
            small = ImageOps.fit(upright.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{file}: not a readable image ({error})") from None
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))


def read_array(path: Path) -> NDArray[np.generic]:
    """The array of a .npy, or of a .npz the one named `images` or its only one; pickled objects are refused."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            name = "images" if "images" in loaded.files or len(loaded.files) != 1 else loaded.files[0]
            array: NDArray[np.generic] = loaded[name]
            return array
    except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
        raise UserError(f"{path}: not a readable array of images ({error})") from None


def from_array(path: Path, array: NDArray[np.generic]) -> Pixels:
    """uint8 (N, 3, 32, 32) or (N, 32, 32, 3) as the former."""
    shape = array.shape
    if array.dtype == np.uint8 and len(shape) == 4 and shape[0] > 0:
        if shape[1:] == (3, SIDE, SIDE):
            return array.astype(np.uint8, copy=False)
        if shape[1:] == (SIDE, SIDE, 3):
            return np.ascontiguousarray(array.transpose(0, 3, 1, 2)).astype(np.uint8, copy=False)
    raise UserError(f"{path}: {array.dtype} {shape} found, uint8 (N, 3, 32, 32) or (N, 32, 32, 3) needed")
