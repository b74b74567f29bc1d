"""Pictures for the tests of the readers."""

import zlib
from io import BytesIO
from pathlib import Path
from struct import pack

import numpy as np
from PIL import Image

from cifar_resnet.inference import image_decoder, image_reader

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
# A tag of type 2, whose value is not text for Pillow, and orientation 6
UNUSUAL_EXIF = (
    b"Exif\0\0MM\0*\0\0\0\x08\0\x02"
    + pack(">HHL4s", 0x100, 2, 4, b"abc\0")
    + pack(">HHLHH", 0x112, 3, 1, 6, 0)
    + b"\0" * 4
)


def read(root: Path, *sources: str, batch_size: int = 100) -> tuple[np.ndarray, list[str], list[str]]:  # type: ignore[type-arg]
    """(pixels, names, errors) of all chunks."""
    chunks = list(image_reader.read_images(sources, root, batch_size=batch_size))
    names = [name for chunk in chunks for name in chunk.names]
    pixels = np.concatenate([chunk.pixels for chunk in chunks])
    assert len(names) == len(pixels)
    return pixels, names, [error for chunk in chunks for error in chunk.errors]


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (64, 48), colour: object = (200, 30, 30)) -> Path:
    Image.new(mode, size, colour).save(path)  # type: ignore[arg-type]
    return path


def encoded(picture: Image.Image, file_format: str, **options: object) -> bytes:
    stream = BytesIO()
    lossless = {"HEIF": {"quality": -1, "chroma": 444}, "WEBP": {"lossless": True}}.get(file_format, {})
    picture.save(stream, file_format, **(lossless | options))
    return stream.getvalue()


def decoded(content: bytes) -> np.ndarray:  # type: ignore[type-arg]
    return image_decoder.read_image(BytesIO(content)).astype(int)


def png_chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data) if checksum is None else checksum)
