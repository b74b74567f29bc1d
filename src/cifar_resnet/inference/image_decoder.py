"""Decode a picture of any format, size and mode to uint8 (3, 32, 32), in bounded memory.

The resampling is bicubic with antialiasing; a picture of 32 x 32 pixels keeps its values. A large JPEG is decoded at
1/2 to 1/8 of its size, with 128 pixels or more on its shorter side. This changes no value by more than about 2 of 255.

Memory: MAX_BYTES for the file and about 15 bytes for each of MAX_PIXELS, together less than 1 GB (measured: 0.8 GB for
WebP, the most). Threads decode one picture at a time.
"""

import warnings
from io import BytesIO
from threading import Lock
from typing import IO

import numpy as np
from PIL import Image, ImageChops, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from pillow_heif import register_heif_opener

from cifar_resnet.data.dataset import Pixels
from cifar_resnet.inference.array_reader import SIDE, read_at_most
from cifar_resnet.inference.image_formats import FORMATS, HEAD_BYTES, has_all_scans, picture_format, without_metadata

MAX_PIXELS = 50_000_000  # to decode
MAX_BYTES = 250_000_000  # of a picture's file, which is read into memory
STRIP_PIXELS = 4_000_000
END_OF_JPEG = b"\xff\xd9"
FILLERS = (b"\x55" * 4096, b"\xaa" * 4096, bytes(range(254, 0, -1)) * 16)  # longer than a block of pixels
ORIENTATION = 0x0112
UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DECODE_LOCK = Lock()

register_heif_opener()


def read_image(stream: IO[bytes]) -> Pixels:
    """Decode a picture and scale it to uint8 (3, 32, 32).

    Metadata that cannot be read is ignored, and a JPEG needs no end marker if all its pixels are there.

    Raises:
        ValueError: if the file is empty, or the picture is too large, before it is decoded.
        Exception: of any type, if the picture is damaged.
    """
    content = read_at_most(stream, MAX_BYTES)
    if not content:
        raise ValueError("empty file")
    is_open_jpeg = picture_format(content[:HEAD_BYTES]) == "JPEG" and not content.endswith(END_OF_JPEG)
    errors = []
    with DECODE_LOCK, warnings.catch_warnings(action="ignore"):
        for variant in without_metadata(content):
            for decode_variant in (decode, decode_open_jpeg) if is_open_jpeg else (decode,):
                try:
                    return scale(decode_variant(variant))
                except Exception as error:  # of any type, from damaged metadata or pixels
                    errors.append(error.with_traceback(None))  # its frames would keep the decoded picture
    raise errors[0]


def decode(content: bytes) -> Image.Image:
    """The picture in its own mode, rotated according to its EXIF orientation.

    Raises:
        ValueError: if the picture is too large, before it is decoded.
        Exception: of any type, if the picture is damaged.
    """
    opened = open_picture(content)
    everything = needs_all_pixels(opened, content)
    width, height = opened.size
    if isinstance(opened, JpegImageFile) or width * height > MAX_PIXELS:
        opened.draft(None, (4 * SIDE, 4 * SIDE))  # JPEG; 12 megapixels in 33 instead of 169 ms. HEIF: its thumbnail
    if not everything:
        width, height = opened.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels found, at most {MAX_PIXELS:,} in total allowed")
    try:
        opened.load()
    except (SyntaxError, OSError, ValueError):
        raise ValueError(damaged_text(opened.format)) from None
    method = upright_method(opened)
    return opened if method is None else opened.transpose(method)


def decode_open_jpeg(content: bytes) -> Image.Image:
    """Decode a JPEG that lacks its end marker.

    Raises:
        ValueError: if a scan is missing, or the pixels depend on what follows, so that some are missing.
        Exception: as in `decode`.
    """
    content = content.rstrip(b"\xff")
    if not has_all_scans(content):
        raise ValueError(damaged_text("JPEG"))
    picture = decode(content + END_OF_JPEG)
    for filler in FILLERS:
        if ImageChops.difference(picture, decode(content + filler + END_OF_JPEG)).getbbox(alpha_only=False):
            raise ValueError(damaged_text("JPEG"))
    return picture


def open_picture(content: bytes) -> Image.Image:
    """Open a picture without decoding it. Pillow's limit of declared pixels does not apply to JPEG.

    Raises:
        ValueError: if it is damaged or not a picture in one of FORMATS.
    """
    name = picture_format(content[:HEAD_BYTES])
    try:
        return JpegImageFile(BytesIO(content)) if name == "JPEG" else Image.open(BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(f"too many pixels, at most {MAX_PIXELS:,} in total allowed") from None
    except (SyntaxError, OSError):
        raise ValueError(
            damaged_text(name) if name else f"not a picture in a supported format ({', '.join(FORMATS)})"
        ) from None


def damaged_text(name: str | None) -> str:
    return f"truncated or damaged {name}, or an unsupported variant of {name}"


def needs_all_pixels(opened: Image.Image, content: bytes) -> bool:
    """Whether `draft` saves no memory: libjpeg buffers all coefficients of a JPEG with more than one scan."""
    if not isinstance(opened, JpegImageFile):
        return False
    assert opened.fp is not None
    first_scan = opened.fp.tell() - 8 - 2 * opened.layers  # Pillow stops after its header
    return "progressive" in opened.info or content[first_scan : first_scan + 2] != b"\xff\xda"


def upright_method(opened: Image.Image) -> Image.Transpose | None:
    """How to rotate the picture according to its EXIF orientation; None without a valid one."""
    try:
        return UPRIGHT.get(opened.getexif().get(ORIENTATION, 1))
    except Exception:  # of any type, from damaged EXIF data
        return None


def scale(picture: Image.Image) -> Pixels:
    """Scale the square around the center to uint8 (3, 32, 32). Transparent parts become white."""
    transparent = picture.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in picture.info
    mode = "RGBA" if transparent else "RGB"
    if picture.width * picture.height > STRIP_PIXELS:
        small = resize_strips(picture, mode)
    else:
        small = ImageOps.fit(
            to_uint8(picture, white_level(picture)).convert(mode), (SIDE, SIDE), Image.Resampling.BICUBIC
        )
    if transparent:
        small = Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))


def resize_strips(picture: Image.Image, mode: str) -> Image.Image:
    """Like `ImageOps.fit`, but converts and resamples the picture strip by strip, without a copy of the picture.

    The strips are parallel to the longer side. Transparent pictures are resampled with premultiplied colors, so that
    hidden colors do not bleed.
    """
    tall = picture.height > picture.width
    length, side = max(picture.size), min(picture.size)
    margin = side // 16 + 3  # beyond the square; the bicubic filter reads 2 * side / 32 pixels
    first, last = max(0, (length - side) // 2 - margin), min(length, (length + side) // 2 + margin)
    start = (length - side) / 2 - first
    narrow = Image.new("RGBa" if mode == "RGBA" else mode, (SIDE, side))
    white, thickness = white_level(picture), max(1, STRIP_PIXELS // (last - first))
    for offset in range(0, side, thickness):
        end = min(offset + thickness, side)
        strip = picture.crop((offset, first, end, last) if tall else (first, offset, last, end))
        strip = to_uint8(strip, white).convert(mode).convert(narrow.mode)
        strip = strip.transpose(Image.Transpose.TRANSPOSE) if tall else strip
        box = (start, 0.0, start + side, float(strip.height))
        narrow.paste(strip.resize((SIDE, strip.height), Image.Resampling.BICUBIC, box), (0, offset))
    small = narrow.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert(mode)
    return small.transpose(Image.Transpose.TRANSPOSE) if tall else small


def white_level(picture: Image.Image) -> int:
    """The value of white in a grey picture: 65535 for 16-bit values and 1 for floats.

    Values of 32 bits count as 8-bit values up to 255 and as 16-bit values up to 65535; otherwise the largest is white.
    """
    if picture.mode != "I":
        return 1 if picture.mode == "F" else 65535
    largest = int(np.asarray(picture).max())
    return next((white for white in (255, 65535) if largest <= white), largest)


def to_uint8(image: Image.Image, white: int) -> Image.Image:
    """Scale grey values of 16 or 32 bits from 0 to `white` to eight bits; images of other modes stay unchanged.

    Raises:
        ValueError: if a value is outside this range, so that the value of white is unknown.
    """
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image)
    if not (values.min() >= 0 and values.max() <= white):
        raise ValueError(f"grey values {values.min()} to {values.max()} found, 0 to {white} needed")
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))
