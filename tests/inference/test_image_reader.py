import os
import tracemalloc
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_images
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from cifar_resnet.inference import image_reader

PIXELS = tiny_images(1, seed=0).pixels
STARTS = [b"", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x80\x04", b"II*\x00", b"GIF89a"]


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
    reduced = image_reader.read_image(stream).astype(int)
    stream.seek(0)
    monkeypatch.setattr(JpegImageFile, "draft", lambda *_: None)
    full = image_reader.read_image(stream)
    assert 0 < np.abs(reduced - full).max() <= 2


@given(pixels=hnp.arrays(np.uint8, (3, 32, 32)), file_format=st.sampled_from(["PNG", "BMP", "TIFF", "WEBP"]))
@settings(deadline=None, max_examples=30)
def test_a_picture_of_32_pixels_keeps_its_values(pixels: np.ndarray, file_format: str) -> None:  # type: ignore[type-arg]
    stream = BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0).copy()).save(stream, file_format, lossless=True)
    stream.seek(0)
    assert np.array_equal(image_reader.read_image(stream), pixels)


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
    assert image_reader.read_image(stream).shape == (3, 32, 32)


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
    assert np.unique(image_reader.read_image(stream)).tolist() == [grey]


def test_greys_of_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 40), 7.0, np.float32)).save(tmp_path / "a.tif")
    assert read(tmp_path, "a.tif")[2] == ["a.tif: not readable: grey values 7.0 to 7.0 found, 0 to 1 needed"]


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


def test_a_folder_is_read_in_order_and_recursively(tmp_path: Path) -> None:
    (tmp_path / "photos/deep").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "deep/c.webp", ".hidden.png"):
        save(tmp_path / "photos" / name)
    (tmp_path / "photos/notes.txt").write_text("no image")
    (tmp_path / "photos/deep/loop").symlink_to(tmp_path / "photos")
    _, names, errors = read(tmp_path, "photos")
    assert names == ["photos/a.JPG", "photos/b.png", "photos/deep/c.webp"]
    assert errors == []


def test_globs_and_zips_and_several_sources_are_read(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "c[1].png"):
        save(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "b.png", "in/b.png")
        archive.writestr("__MACOSX/in/._b.png", b"not a picture")
        archive.writestr("in/bad.png", b"not a picture")
    _, names, errors = read(tmp_path, "[ab].png", "all.zip", "c[1].png", str(tmp_path / "b*"))
    assert names == ["a.png", "b.png", "all.zip/in/b.png", "c[1].png", "b.png"]
    formats = "PNG, JPEG, WEBP, BMP, GIF, TIFF"
    assert errors == [f"all.zip/in/bad.png: not readable: not a picture in a supported format ({formats})"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", b"no image at all", "not a picture in a supported format"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "not a picture in a supported format"),
        ("a.jpg", b"", "not a picture in a supported format"),
        ("a.npy", b"\x93NUMPY", "EOF"),
        ("a.npz", b"PK\x03\x04", "File is not a zip file"),
        ("a.zip", b"PK\x03\x04", "File is not a zip file"),
        ("a.bin", b"123", "3 bytes found, a multiple of 3073 needed"),
        ("a.bin", b"", "0 bytes found, a multiple of 3073 needed"),
        ("a", b"\x80\x04", "Ran out of input"),
    ],
)
def test_an_unreadable_file_is_reported_with_its_name_and_the_reason(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    pixels, _, errors = read(tmp_path, name)
    assert len(pixels) == 0
    assert len(errors) == 1
    assert errors[0].startswith(f"{name}: not readable: ")
    assert reason in errors[0]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".npy", ".npz", ".zip", ".bin", ""])
@given(content=st.binary(max_size=300), start=st.sampled_from(STARTS))
@settings(deadline=None, max_examples=40)
def test_any_bytes_are_read_or_refused_and_the_rest_is_read(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, content: bytes, start: bytes
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / f"any{suffix}").write_bytes(start + content)
    save(folder / "good.png")
    _, names, errors = read(folder, f"any{suffix}", "good.png")
    assert names[-1] == "good.png"
    assert len(names) + len(errors) >= 2
    assert all("\n" not in error for error in errors)


def test_truncated_pictures_and_arrays_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for suffix in ("png", "jpg", "webp", "bmp", "tif"):
        Image.fromarray(noise).save(tmp_path / f"a.{suffix}")
    np.save(tmp_path / "a.npy", PIXELS)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        pixels, _, errors = read(tmp_path, file.name)
        assert (len(pixels), len(errors)) == (0, 1), file.name


def test_a_picture_with_too_many_pixels_is_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a.png")
    monkeypatch.setattr(image_reader, "MAX_PIXELS", 3000)
    assert read(tmp_path, "a.png")[2] == ["a.png: not readable: 64 x 48 pixels found, at most 3,000 in total allowed"]
    monkeypatch.setattr(image_reader, "MAX_BYTES", 50)
    assert read(tmp_path, "a.png")[2] == ["a.png: not readable: more than 50 bytes"]


@pytest.mark.parametrize("side", [8_000, 10_000, 30_000])
def test_a_decompression_bomb_costs_no_memory(tmp_path: Path, side: int) -> None:
    header = BytesIO()
    Image.new("1", (64, 64)).save(header, "PNG")
    content = bytearray(header.getvalue())
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(content)
    assert "at most 50,000,000 in total allowed" in read(tmp_path, "a.png")[2][0]


def test_missing_and_empty_sources_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    sources = ("empty", "none.png", "*.jpg", "a**b", "loop.png", "gone.png", "pipe.png")
    assert read(tmp_path, *sources)[2] == [
        f"empty: not readable: contains no image ({', '.join(image_reader.SUFFIXES)})",
        "none.png: not readable: No such file or directory",
        "*.jpg: not readable: No such file or directory",
        "a**b: not readable: No such file or directory",
        "loop.png: not readable: Too many levels of symbolic links",
        "gone.png: not readable: No such file or directory",
        "pipe.png: not readable: not a regular file",
    ]


def test_a_file_that_vanishes_does_not_stop_the_others(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        save(tmp_path / name)
    chunks = image_reader.read_images(["."], tmp_path, batch_size=1)
    assert next(chunks).names == ["a.png"]
    (tmp_path / "b.png").unlink()
    assert next(chunks).errors == ["b.png: not readable: No such file or directory"]
    assert next(chunks).names == ["c.png"]


def test_memory_does_not_grow_with_the_images_of_a_folder(tmp_path: Path) -> None:
    first = save(tmp_path / "first.png", size=(32, 32))
    peaks = []
    for count in (200, 2000):
        (tmp_path / str(count)).mkdir()
        for number in range(count):
            os.link(first, tmp_path / f"{count}/{number}.png")
        tracemalloc.start()
        chunks = image_reader.read_images([str(count)], tmp_path, batch_size=50)
        assert sum(len(chunk.names) for chunk in chunks) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 1_000_000  # names; the pixels of 1,800 more images are 5,529,600 bytes


def test_a_name_stays_on_one_line(tmp_path: Path) -> None:
    save(tmp_path / "two\nlines.png")
    save(Path(os.fsdecode(os.fsencode(tmp_path) + b"/z\xff.png")))
    assert read(tmp_path, ".")[1] == ["two\\nlines.png", "z\\udcff.png"]


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), batch_size=st.integers(1, 12))
@settings(deadline=None, max_examples=30)
def test_chunks_are_bounded_and_hold_everything_in_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], batch_size: int
) -> None:
    folder = tmp_path_factory.mktemp("chunks")
    for number, size in enumerate(sizes):
        np.save(folder / f"{number}.npy", PIXELS[:size])
    chunks = list(image_reader.read_images(["*.npy", "none"], folder, batch_size=batch_size))
    expected = [f"{number}.npy[{row}]" for number, size in enumerate(sizes) for row in range(size)]
    assert [name for chunk in chunks for name in chunk.names] == expected
    assert all(len(chunk.names) < 2 * batch_size for chunk in chunks)
    assert all(len(chunk.names) + len(chunk.errors) >= batch_size for chunk in chunks[:-1])
