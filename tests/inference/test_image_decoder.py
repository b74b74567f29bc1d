"""Pictures of every format, size and mode become 32 x 32 pixels, in bounded memory."""

import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path
from struct import pack

import numpy as np
import pytest
from conftest import tiny_images
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pictures import PHOTO, UNUSUAL_EXIF, decoded, encoded, png_chunk, read, save
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from cifar_resnet.inference import image_decoder

PIXELS = tiny_images(1, seed=0).pixels
PRINT_PEAK_MEMORY = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from cifar_resnet.inference.image_decoder import read_image

def decode(_):
    with Path(sys.argv[1]).open("rb") as stream:
        return read_image(stream).shape

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

before = peak()
with ThreadPoolExecutor(4) as pool:
    assert list(pool.map(decode, range(4))) == [(3, 32, 32)] * 4
print(peak() - before)
"""


def bomb(side: int) -> bytes:
    """A PNG that declares side x side pixels."""
    content = bytearray(encoded(Image.new("1", (64, 64)), "PNG"))
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def test_a_photograph_is_scaled_and_cropped_to_its_center(tmp_path: Path) -> None:
    photo = np.zeros((60, 180, 3), np.uint8)
    photo[:, 60:120] = 255
    Image.fromarray(photo).save(tmp_path / "wide.png")
    pixels, names, _ = read(tmp_path, "wide.png")
    assert names == ["wide.png"]
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels.min() > 200  # the black thirds on the left and right are cropped


def test_a_jpeg_decoded_at_reduced_size_nearly_equals_the_full_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, photo = BytesIO(), Image.fromarray(PIXELS[0].transpose(1, 2, 0).copy())
    photo.resize((800, 600), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    stream.seek(0)
    reduced = image_decoder.read_image(stream).astype(int)
    stream.seek(0)
    monkeypatch.setattr(JpegImageFile, "draft", lambda *_: None)
    full = image_decoder.read_image(stream)
    assert 0 < np.abs(reduced - full).max() <= 2


@given(pixels=hnp.arrays(np.uint8, (3, 32, 32)), file_format=st.sampled_from(["PNG", "BMP", "TIFF", "WEBP"]))
@settings(deadline=None, max_examples=30)
def test_a_picture_of_32_pixels_keeps_its_values(pixels: np.ndarray, file_format: str) -> None:  # type: ignore[type-arg]
    stream = BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0).copy()).save(stream, file_format, lossless=True)
    stream.seek(0)
    assert np.array_equal(image_decoder.read_image(stream), pixels)


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"]),
)
@settings(deadline=None, max_examples=60)
def test_every_size_and_mode_becomes_32_pixels_of_rgb(width: int, height: int, mode: str) -> None:
    stream = BytesIO()
    picture = Image.new(mode, (width, height))
    picture.save(stream, "JPEG" if mode in ("CMYK", "YCbCr") else "TIFF" if mode in ("F", "I") else "PNG")
    stream.seek(0)
    assert image_decoder.read_image(stream).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("values", "file_format", "grey"),
    [
        (np.full((40, 40), 25700, np.uint16), "PNG", 100),
        (np.full((40, 40), 25700, np.int32), "TIFF", 100),
        (np.full((40, 40), 0.4, np.float32), "TIFF", 102),
    ],
)
def test_greys_of_16_and_32_bits_are_scaled_to_eight_bits(values: np.ndarray, file_format: str, grey: int) -> None:  # type: ignore[type-arg]
    stream = BytesIO()
    Image.fromarray(values).save(stream, file_format)
    stream.seek(0)
    assert np.unique(image_decoder.read_image(stream)).tolist() == [grey]


@pytest.mark.parametrize(("largest", "grey"), [(100, 100), (255, 255), (256, 1), (65535, 255), (1_000_000, 255)])
@pytest.mark.parametrize("strip_pixels", [100, 4_000_000])
def test_the_largest_grey_value_of_32_bits_determines_white(
    monkeypatch: pytest.MonkeyPatch, largest: int, grey: int, strip_pixels: int
) -> None:
    monkeypatch.setattr(image_decoder, "STRIP_PIXELS", strip_pixels)
    values = np.zeros((64, 64), np.int32)
    values[32:] = largest
    pixels = decoded(encoded(Image.fromarray(values), "TIFF"))
    assert (pixels[:, 0].max(), pixels[:, -1].min()) == (0, grey)


def test_greys_of_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 40), 7.0, np.float32)).save(tmp_path / "a.tif")
    assert read(tmp_path, "a.tif")[2] == ["a.tif: not readable: grey values 7.0 to 7.0 found, 0 to 1 needed"]


GRADIENT = Image.fromarray(np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 100, "subsampling": 0}])
@pytest.mark.parametrize("picture", [PHOTO, GRADIENT, Image.new("L", (64, 48), 128)])
def test_a_jpeg_needs_no_end_marker_but_all_pixels(picture: Image.Image, options: dict[str, object]) -> None:
    content = encoded(picture, "JPEG", **options)
    assert content.endswith(b"\xff\xd9")
    for missing in (1, 2):
        assert np.array_equal(decoded(content[:-missing]), decoded(content))
    for length in range(100, len(content) - 5):  # the last bytes can hold only what rounds to the same pixels
        with pytest.raises(ValueError, match=r"^truncated or damaged JPEG"):
            decoded(content[:length])


def test_the_first_frame_of_a_gif_is_read(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (40, 40), colour) for colour in ("red", "blue"))
    red.save(tmp_path / "a.gif", save_all=True, append_images=[blue])
    assert read(tmp_path, "a.gif")[0][0, :, 9, 9].tolist() == [255, 0, 0]


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    save(tmp_path / "a.png", "RGBA", colour=(1, 2, 3, 0))
    assert read(tmp_path, "a.png")[0].min() == 255


def test_half_transparent_parts_are_mixed_with_white_and_hidden_colours_do_not_bleed(tmp_path: Path) -> None:
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[:, :32] = (255, 0, 0, 0)  # red, fully transparent
    picture[:, 32:] = (0, 0, 0, 102)  # black with an opacity of 40 %
    Image.fromarray(picture).save(tmp_path / "a.png")
    pixels = read(tmp_path, "a.png")[0][0]
    assert np.array_equal(pixels[0], pixels[1])
    assert pixels[:, :, 31].tolist() == [[153] * 32] * 3


def test_exif_rotation_is_undone(tmp_path: Path) -> None:
    picture = Image.fromarray(
        np.repeat(np.array([[[255, 0, 0]], [[0, 0, 255]]], np.uint8), 64, axis=1).repeat(32, axis=0)
    )
    exif = Image.Exif()
    exif[0x0112] = 3  # rotated by 180 degrees
    picture.save(tmp_path / "a.png", exif=exif)
    pixels = read(tmp_path, "a.png")[0][0]
    assert pixels[2, 0, 16] > 200 > 50 > pixels[0, 0, 16]  # blue is on top


def test_a_picture_with_too_many_pixels_is_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a.png")
    monkeypatch.setattr(image_decoder, "MAX_PIXELS", 3000)
    assert read(tmp_path, "a.png")[2] == ["a.png: not readable: 64 x 48 pixels found, at most 3,000 in total allowed"]
    monkeypatch.setattr(image_decoder, "MAX_BYTES", 50)
    assert read(tmp_path, "a.png")[2] == ["a.png: not readable: more than 50 bytes"]


@pytest.mark.parametrize("side", [8_000, 10_000, 30_000])
def test_a_decompression_bomb_costs_no_memory(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(bomb(side))
    assert "at most 50,000,000 in total allowed" in read(tmp_path, "a.png")[2][0]


@pytest.mark.parametrize("file_format", ["HEIF", "AVIF", "WEBP"])
def test_modern_formats_are_read(file_format: str) -> None:
    picture = Image.new("RGB", (64, 48), (200, 30, 90))
    assert np.abs(decoded(encoded(picture, file_format)) - decoded(encoded(picture, "PNG"))).max() <= 3  # YCbCr


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (250, 250), (400, 3)])
def test_strips_give_nearly_the_pixels_of_one_piece(
    mode: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (3, 3, 4), np.uint8)
    picture = Image.fromarray(noise, "RGBA").resize(size, Image.Resampling.BILINEAR)
    if mode in ("I;16", "F"):
        grey = np.asarray(picture.convert("L"))
        picture = Image.fromarray(grey.astype(np.uint16) * 257 if mode == "I;16" else (grey / 255).astype(np.float32))
    else:
        picture = picture.convert(mode)
    one_piece = image_decoder.scale(picture).astype(int)
    monkeypatch.setattr(image_decoder, "STRIP_PIXELS", 999)
    assert np.abs(image_decoder.scale(picture) - one_piece).max() <= (9 if mode in ("1", "P") else 2)  # other rounding


def test_a_photo_of_200_megapixels_is_read_and_its_progressive_version_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photo = Image.new("L", (16320, 12240), 128)
    assert np.unique(decoded(encoded(photo, "JPEG", quality=1))).tolist() == [128]
    small = encoded(PHOTO.resize((640, 480)), "JPEG")
    progressive = encoded(PHOTO.resize((640, 480)), "JPEG", progressive=True)
    monkeypatch.setattr(image_decoder, "MAX_PIXELS", 200_000)
    decoded(small)
    with pytest.raises(ValueError, match="640 x 480 pixels found, at most 200,000 in total allowed"):
        decoded(progressive)


@pytest.mark.parametrize("name", ["tall and rotated", "WebP with transparency"])
def test_four_pictures_at_once_take_less_than_a_gigabyte(tmp_path: Path, name: str) -> None:
    if name == "WebP with transparency":
        content = encoded(Image.new("RGBA", (7000, 7000), (9, 9, 9, 100)), "WEBP", quality=0, method=0)
    else:
        exif = png_chunk(b"eXIf", UNUSUAL_EXIF[6:])
        header = png_chunk(b"IHDR", pack(">IIBBBBB", 1, 40_000_000, 8, 0, 0, 0, 0))
        rows = png_chunk(b"IDAT", zlib.compress(bytes(80_000_000), 1))
        content = b"\x89PNG\r\n\x1a\n" + header + exif + rows + png_chunk(b"IEND", b"")
    (tmp_path / "a").write_bytes(content)
    command = [sys.executable, "-c", PRINT_PEAK_MEMORY, tmp_path / "a"]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert peak < 1_000_000_000
