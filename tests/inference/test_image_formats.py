"""Metadata never decide whether pixels are read."""

import zlib
from io import BytesIO
from struct import pack

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import PHOTO, UNUSUAL_EXIF, decoded, encoded, png_chunk
from PIL import Image

from cifar_resnet.inference import image_decoder

LONG_TEXT = zlib.compress(b"a" * 9_000_000)
JUNK = (
    b"",
    b"\0",
    b"JFIF\0\1",
    b"Adobe\0",
    b"ICC_PROFILE\0\5\2x",
    b"Exif\0\0MM\0*\0\0\0\x08\0\x09x",
    b"MPF\0MM\0*\0\0\0\x08",
)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(PHOTO, file_format, exif=exif)
    stored = Image.open(BytesIO(encoded(PHOTO, file_format))).convert("RGB")
    method = image_decoder.UPRIGHT.get(orientation)
    expected = stored if method is None else stored.transpose(method)
    assert np.array_equal(decoded(content), decoded(encoded(expected, "PNG")))


def test_an_unusual_exif_tag_hides_neither_the_picture_nor_its_orientation() -> None:
    stored = Image.open(BytesIO(encoded(PHOTO, "JPEG")))
    expected = decoded(encoded(stored.transpose(Image.Transpose.ROTATE_270), "PNG"))
    assert np.array_equal(decoded(encoded(PHOTO, "JPEG", exif=UNUSUAL_EXIF)), expected)


@pytest.mark.parametrize("at", [33, -12])  # after the header; before the end
@pytest.mark.parametrize(
    "chunk",
    [png_chunk(kind, data) for kind in (b"gAMA", b"cHRM", b"pHYs", b"iCCP", b"eXIf", b"tRNS") for data in JUNK]
    + [png_chunk(b"zTXt", b"k\0\0" + LONG_TEXT), png_chunk(b"iCCP", b"k\0\0" + LONG_TEXT), png_chunk(b"tEXt", b"x", 1)],
)
def test_damaged_metadata_of_a_png_change_no_pixel(chunk: bytes, at: int) -> None:
    content = encoded(PHOTO, "PNG")
    assert np.array_equal(decoded(content[:at] + chunk + content[at:]), decoded(content))


def test_the_orientation_survives_other_damaged_metadata() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    content, expected = encoded(PHOTO, "PNG", exif=exif), PHOTO.transpose(Image.Transpose.ROTATE_180)
    damaged = content[:33] + png_chunk(b"gAMA", b"") + content[33:]
    assert np.array_equal(decoded(damaged), decoded(encoded(expected, "PNG")))


@pytest.mark.parametrize("data", JUNK)
@pytest.mark.parametrize("marker", [*range(0xE0, 0xF0), 0xFE])
def test_damaged_metadata_of_a_jpeg_change_no_pixel(marker: int, data: bytes) -> None:
    content = encoded(PHOTO, "JPEG")
    segment = bytes([0xFF, marker]) + pack(">H", len(data) + 2) + data
    assert np.array_equal(decoded(content[:2] + segment + content[2:]), decoded(content))


@pytest.mark.parametrize("tag", [254, 270, 282, 296, 306, 700, 34377, 34665, 34675, 34853, 65000])
@pytest.mark.parametrize("kind", range(14))
@pytest.mark.parametrize(("count", "value"), [(1, 0), (9, 99_999_999), (2**32 - 1, 8)])
def test_damaged_metadata_of_a_tiff_change_no_pixel(tag: int, kind: int, count: int, value: int) -> None:
    content = encoded(PHOTO, "TIFF")
    start = int.from_bytes(content[4:8], "little")
    end = start + 2 + 12 * int.from_bytes(content[start : start + 2], "little")
    entries = {content[place : place + 2]: content[place : place + 12] for place in range(start + 2, end, 12)}
    entries[pack("<H", tag)] = pack("<HHII", tag, kind, count, value)
    directory = pack("<H", len(entries)) + b"".join(entries[key] for key in sorted(entries, key=lambda key: key[::-1]))
    damaged = content[:4] + pack("<I", len(content)) + content[8:] + directory + bytes(4)
    assert np.array_equal(decoded(damaged), decoded(content))


@pytest.mark.parametrize("file_format", ["AVIF", "HEIF", "WEBP"])
@given(damage=st.lists(st.tuples(st.integers(0, 29), st.integers(0, 255)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=40)
def test_damaged_exif_data_hide_no_picture(file_format: str, damage: list[tuple[int, int]]) -> None:
    exif = Image.Exif()
    exif[0x010E] = "text" * 9
    content = bytearray(encoded(PHOTO, file_format, exif=exif))
    start = content.find(exif.tobytes()[6:])
    assert start > 0
    for offset, value in damage:
        content[start + offset] = value
    assert decoded(bytes(content)).shape == (3, 32, 32)
