import os
import tracemalloc
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_images
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import PHOTO, decoded, encoded, read, save
from PIL import Image

from cifar_resnet.errors import UserError
from cifar_resnet.inference import image_reader

PIXELS = tiny_images(1, seed=0).pixels
FORMATS = "PNG, JPEG, WEBP, BMP, GIF, TIFF, AVIF, HEIF"
STARTS = [b"", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x80\x04", b"II*\x00", b"GIF89a"]


def test_a_folder_is_read_in_order_and_recursively(tmp_path: Path) -> None:
    (tmp_path / "photos/deep").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "deep/c.webp", ".hidden.png"):
        save(tmp_path / "photos" / name)
    (tmp_path / "photos/notes.txt").write_text("no image")
    (tmp_path / "photos/deep/loop").symlink_to(tmp_path / "photos")
    _, names, errors = read(tmp_path, "photos")
    assert names == ["photos/a.JPG", "photos/b.png", "photos/deep/c.webp"]
    assert errors == []


def test_files_in_hidden_folders_are_ignored_unless_the_folder_is_named(tmp_path: Path) -> None:
    for name in ("photos/a.png", "photos/.thumbs/a.png", "photos/in/.trash/deep/a.png", ".album/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / ".album/b.png", "in/b.png")
        archive.write(tmp_path / ".album/b.png", "in/.thumbs/b.png")
    assert read(tmp_path, "photos", ".album", "all.zip")[1:] == (
        ["photos/a.png", ".album/b.png", "all.zip/in/b.png"], []
    )  # fmt: skip
    (tmp_path / "elsewhere").mkdir()
    assert read(tmp_path / "elsewhere", "../photos")[1:] == (["../photos/a.png"], [])


def test_a_glob_reads_every_picture_once_and_no_hidden_one(tmp_path: Path) -> None:
    for name in ("a.png", "album/b.png", "album/in/c.png", "album/.thumbs/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save(tmp_path / name)
    assert read(tmp_path, "**/*")[1] == ["a.png", "album/b.png", "album/in/c.png"]
    assert read(tmp_path, "album/*")[1] == ["album/b.png", "album/in/c.png"]
    assert read(tmp_path, "album/.th*/*")[1] == ["album/.thumbs/b.png"]
    save(tmp_path / "album/.thumbs/.c.png")
    save(tmp_path / "album/.d.png")
    assert read(tmp_path, "album/.th*/*")[1] == ["album/.thumbs/b.png"]
    assert read(tmp_path / "album/in", "../*.png")[1] == ["../b.png"]
    assert read(tmp_path, "album/.*.png")[1] == ["album/.d.png"]


def test_globs_and_zips_and_several_sources_are_read(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "c[1].png"):
        save(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "b.png", "in/b.png")
        archive.writestr("__MACOSX/in/._b.png", b"not a picture")
        archive.writestr("in/bad.png", b"not a picture")
    _, names, errors = read(tmp_path, "[ab].png", "all.zip", "c[1].png", str(tmp_path / "b*"))
    assert names == ["a.png", "b.png", "all.zip/in/b.png", "c[1].png", "b.png"]
    assert errors == [f"all.zip/in/bad.png: not readable: not a picture in a supported format ({FORMATS})"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", b"no image at all", "not a picture in a supported format"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "truncated or damaged PNG, or an unsupported variant of PNG"),
        ("a.jpg", b"", "empty file"),
        ("a.npy", b"", "empty file"),
        ("a.npy", b"\x93NUMPY", "EOF"),
        ("a.npz", b"PK\x03\x04", "File is not a zip file"),
        ("a.zip", b"PK\x03\x04", "File is not a zip file"),
        ("a.bin", b"123", "3 bytes found, a multiple of 3073 needed"),
        ("a.bin", b"", "empty file"),
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
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp", "a.tif", "a.avif", "a.heic", "lzw.tif"):
        Image.fromarray(noise).save(tmp_path / name, compression="tiff_lzw" if name == "lzw.tif" else None)
    np.save(tmp_path / "a.npy", PIXELS)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        pixels, _, (error,) = read(tmp_path, file.name)
        assert len(pixels) == 0, file.name
        assert error.startswith(f"{file.name}: not readable: truncated"), error


def test_an_empty_file_of_a_folder_is_reported_as_empty(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    save(tmp_path / "b.png")
    assert read(tmp_path, ".")[1:] == (["b.png"], ["a.jpg: not readable: empty file"])


def test_an_encrypted_file_in_a_zip_is_reported_as_encrypted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/b.png", encoded(PHOTO, "PNG"))
    content = bytearray((tmp_path / "a.zip").read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # of the file, and of its entry in the directory
        content[content.index(signature) + flags] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    assert read(tmp_path, "a.zip")[2] == [
        "a.zip/in/b.png: not readable: encrypted in the zip; unpack the zip with its password and use the folder"
    ]


def test_missing_and_empty_sources_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    sources = ("empty", "none.png", "*.jpg", "a**b", "loop.png", "gone.png", "pipe.png")
    assert read(tmp_path, *sources)[2] == [
        f"empty: not readable: contains no picture ({FORMATS})",
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


class NameWithoutFlag(zipfile.ZipInfo):
    """A zip's file whose name is stored as given, as Linux and macOS do, without the flag for UTF-8."""

    stored_name: bytes

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.stored_name, self.flag_bits


@pytest.mark.parametrize(
    ("stored", "name"),
    [("Käse.jpg".encode(), "Käse.jpg"), (b"K\x84se.jpg", "Käse.jpg"), ("日本.jpg".encode(), "日本.jpg")],
)
def test_names_in_a_zip_are_utf8_or_cp437(tmp_path: Path, stored: bytes, name: str) -> None:
    save(tmp_path / "a.jpg")
    member = NameWithoutFlag("a.jpg")
    member.stored_name = stored
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, (tmp_path / "a.jpg").read_bytes())
        archive.write(tmp_path / "a.jpg", "Öl.jpg")
    assert read(tmp_path, "a.zip")[1] == [f"a.zip/{name}", "a.zip/Öl.jpg"]


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_are_recognized_by_content_and_other_files_are_counted(tmp_path: Path, packed: bool) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    pictures = {"a.jpg": "JPEG", "b.jfif": "JPEG", "c.heic": "HEIF", "d.avif": "AVIF", "e.png": "JPEG", "f": "PNG",
                "g.txt": "WEBP", "h.JPE": "JPEG"}  # fmt: skip
    for name, file_format in pictures.items():
        Image.new("RGB", (64, 48), "red").save(folder / name, file_format)
    broken = {"i.heic": b"text", "j.cr2": b"text", "k.bin": b"\x89PNG\r\n\x1a\n", "l.jp2": b"", "m.svg": b"<svg/>"}
    others = {"Thumbs.db": b"\xd0\xcf\x11\xe0", "._a.jpg": b"\0\5\x16\7", "notes.txt": b"BMW and GIFs",
              ".DS_Store": b"", "n.pdf": b"%PDF-1.7", "o.mov": b"\0\0\0\x14ftypqt  ", "p.npy": b""}  # fmt: skip
    for name, content in (broken | others).items():
        (folder / name).write_bytes(content)
    source = "photos"
    if packed:
        source = "photos.zip"
        with zipfile.ZipFile(tmp_path / source, "w") as archive:
            for path in sorted(folder.iterdir()):
                archive.write(path, path.name)
    chunks = list(image_reader.read_images([source], tmp_path, batch_size=100))
    assert [name for chunk in chunks for name in chunk.names] == [f"{source}/{name}" for name in sorted(pictures)]
    errors = [error.split(":")[0] for chunk in chunks for error in chunk.errors]
    assert errors == [f"{source}/{name}" for name in sorted(broken)]
    assert sum(chunk.ignored for chunk in chunks) == len(others)


@pytest.mark.parametrize("name", ["a", "a.txt", "a.zip", "a.npy", "a.npz", "a.bin", "a.heic"])
def test_a_picture_is_read_whatever_its_suffix(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / name, "PNG")
    assert read(tmp_path, name)[1:] == ([name], [])


def test_arrays_and_zips_are_read_whatever_their_suffix(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PIXELS)
    (tmp_path / "a.npy").rename(tmp_path / "array")
    with zipfile.ZipFile(tmp_path / "packed", "w") as archive:
        archive.write(save(tmp_path / "a.png"), "a.png")
    assert read(tmp_path, "array", "packed")[1:] == ([*(f"array[{row}]" for row in range(10)), "packed/a.png"], [])


def test_read_picture_returns_the_pixels_of_one_file_or_an_error_with_its_name() -> None:
    content = encoded(PHOTO, "PNG")
    assert (image_reader.read_picture("a.png", lambda: BytesIO(content)) == decoded(content)).all()
    with pytest.raises(UserError, match=r"^a\.png: not readable: "):
        image_reader.read_picture("a.png", lambda: BytesIO(content[:60]))
