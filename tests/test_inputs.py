from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_images
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cifar_resnet import inputs
from cifar_resnet.errors import UserError


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (64, 48), colour: object = (200, 30, 30)) -> Path:
    Image.new(mode, size, colour).save(path)  # type: ignore[arg-type]
    return path


def test_a_photograph_is_scaled_and_its_middle_taken(tmp_path: Path) -> None:
    photo = np.zeros((60, 180, 3), np.uint8)
    photo[:, 60:120] = 255
    Image.fromarray(photo).save(tmp_path / "wide.png")
    pixels, names = inputs.read(tmp_path / "wide.png")
    assert names == ["wide.png"]
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels.min() > 200  # the black thirds left and right are cut off


@pytest.mark.parametrize(("mode", "colour"), [("L", 128), ("RGBA", (1, 2, 3, 0)), ("P", 3), ("1", 1), ("LA", (9, 0))])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, colour: object) -> None:
    assert inputs.read(save(tmp_path / "a.png", mode, colour=colour))[0].shape == (1, 3, 32, 32)


def test_transparency_shows_white(tmp_path: Path) -> None:
    assert inputs.read(save(tmp_path / "a.png", "RGBA", colour=(1, 2, 3, 0)))[0].min() == 255


def test_exif_rotation_is_undone(tmp_path: Path) -> None:
    picture = Image.fromarray(
        np.repeat(np.array([[[255, 0, 0]], [[0, 0, 255]]], np.uint8), 64, axis=1).repeat(32, axis=0)
    )
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    picture.save(tmp_path / "a.png", exif=exif)
    pixels = inputs.read(tmp_path / "a.png")[0][0]
    assert pixels[2, 0, 16] > 200 > 50 > pixels[0, 0, 16]  # blue is on top


def test_a_folder_is_read_in_order_and_recursively(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.png", "a.jpg", "deep/c.webp"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    pixels, names = inputs.read(tmp_path)
    assert names == ["a.jpg", "b.png", "deep/c.webp"]
    assert len(pixels) == 3


def test_arrays_of_either_layout_and_bin_files_are_read(tmp_path: Path, project: Path) -> None:
    pixels = tiny_images(1, seed=0).pixels
    np.save(tmp_path / "a.npy", pixels)
    np.save(tmp_path / "b.npy", pixels.transpose(0, 2, 3, 1))
    np.savez(tmp_path / "c.npz", images=pixels, other=np.zeros(1))
    for name in ("a.npy", "b.npy", "c.npz"):
        assert np.array_equal(inputs.read(tmp_path / name)[0], pixels)
    assert len(inputs.read(project / "data/raw/test_batch.bin")[0]) == 40


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", b"no image at all", "not a readable image"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "not a readable image"),
        ("a.jpg", b"", "not a readable image"),
        ("a.npy", b"\x93NUMPY", "not a readable array"),
        ("a.npz", b"PK\x03\x04", "not a readable array"),
        ("a.bin", b"123", "3 bytes found"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: .*{reason}|{name}: {reason}"):
        inputs.read(tmp_path / name)


def test_a_truncated_picture_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a readable image"):
        inputs.read(tmp_path / "a.png")


def test_a_picture_too_large_to_decode_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_PIXELS", 3000)
    with pytest.raises(UserError, match="64 x 48 pixels, 3,000 in all allowed"):
        inputs.read(save(tmp_path / "a.png"))


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no image"):
        inputs.read(tmp_path)
    with pytest.raises(UserError, match="not found"):
        inputs.read(tmp_path / "none.png")


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"run": "me"}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="not a readable array"):
        inputs.read(tmp_path / "a.npy")


@given(
    array=hnp.arrays(
        dtype=st.sampled_from([np.uint8, np.float32, np.int64]),
        shape=st.one_of(hnp.array_shapes(max_dims=4, max_side=4), st.sampled_from([(2, 3, 32, 32), (1, 32, 32, 3)])),
        fill=st.just(0),
    )
)
@settings(deadline=None, max_examples=60)
def test_an_array_is_either_images_or_refused_with_its_shape(array: np.ndarray) -> None:  # type: ignore[type-arg]
    wanted = array.dtype == np.uint8 and array.shape[1:] in ((3, 32, 32), (32, 32, 3))
    if wanted:
        assert inputs.from_array(Path("a.npy"), array).shape == (len(array), 3, 32, 32)
    else:
        with pytest.raises(UserError, match=r"found, uint8 \(N, 3, 32, 32\)"):
            inputs.from_array(Path("a.npy"), array)
