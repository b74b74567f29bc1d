import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_images
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cifar_resnet.inference import image_reader

PIXELS = tiny_images(1, seed=0).pixels


def read(root: Path, source: str, *, batch_size: int = 100) -> tuple[np.ndarray, list[str], list[str]]:  # type: ignore[type-arg]
    """(pixels, names, errors) of all chunks."""
    chunks = list(image_reader.read_images([source], root, batch_size=batch_size))
    names = [name for chunk in chunks for name in chunk.names]
    pixels = np.concatenate([chunk.pixels for chunk in chunks])
    assert len(names) == len(pixels)
    return pixels, names, [error for chunk in chunks for error in chunk.errors]


def test_arrays_of_either_layout_and_bin_files_are_read(tmp_path: Path, project: Path) -> None:
    np.save(tmp_path / "a.npy", PIXELS)
    np.save(tmp_path / "b.npy", PIXELS.transpose(0, 2, 3, 1))
    np.savez(tmp_path / "c.npz", images=PIXELS, other=np.zeros(1))
    np.savez_compressed(tmp_path / "d.npz", PIXELS)
    for name in ("a.npy", "b.npy", "c.npz", "d.npz"):
        pixels, names, _ = read(tmp_path, name, batch_size=4)
        assert np.array_equal(pixels, PIXELS)
        assert names == [f"{name}[{row}]" for row in range(10)]
    binary = read(project, "data/raw/test_batch.bin", batch_size=7)[0]
    assert np.array_equal(binary, np.load(project / "data/prepared/test_images.npy", allow_pickle=False))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickled_batch_is_read(tmp_path: Path, protocol: int) -> None:
    batch = {"data": PIXELS.reshape(10, -1), "labels": [0] * 10}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, protocol))
    assert np.array_equal(read(tmp_path, "data_batch_1")[0], PIXELS)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch payload-ran",)


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        (Payload(), "refused: the file wants to run posix.system"),
        ({"data": Payload()}, "refused: the file wants to run posix.system"),
        ({"data": PIXELS.reshape(10, -1).astype(int)}, "data int64 (10, 3072) found, uint8 (N, 3072), N up to 20,000"),
        ([1, 2], "list indices"),
    ],
)
def test_a_pickle_runs_nothing_and_must_hold_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: object, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "batch").write_bytes(pickle.dumps(batch))
    pixels, _, errors = read(tmp_path, "batch")
    assert len(pixels) == 0
    assert errors[0].startswith(f"batch: not readable: {reason}")
    assert not (tmp_path / "payload-ran").exists()


def test_a_pickle_cannot_claim_more_memory_than_its_size(tmp_path: Path) -> None:
    class Huge:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return np.ndarray, ((10**9, 3072), "u1", bytes(1), 0, (0, 0))

    (tmp_path / "batch").write_bytes(pickle.dumps({"data": Huge()}))
    assert "data uint8 (1000000000, 3072) found" in read(tmp_path, "batch")[2][0]


def test_a_npz_with_several_arrays_needs_one_named_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=PIXELS, b=PIXELS)
    assert read(tmp_path, "a.npz")[2] == [
        "a.npz: not readable: 2 arrays found, a single array or one named images needed"
    ]


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    assert "object (1,) found, uint8 (N, 3, 32, 32)" in read(tmp_path, "a.npy")[2][0]


@given(
    array=hnp.arrays(
        dtype=st.sampled_from([np.uint8, np.float32, np.int64]),
        shape=st.one_of(hnp.array_shapes(max_dims=4, max_side=4), st.sampled_from([(2, 3, 32, 32), (1, 32, 32, 3)])),
        fill=st.just(0),
    )
)
@settings(deadline=None, max_examples=60)
def test_an_array_holds_images_or_is_refused_with_its_shape(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray  # type: ignore[type-arg]
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("array")
    np.save(folder / "a.npy", array)
    pixels, _, errors = read(folder, "a.npy")
    if array.dtype == np.uint8 and array.shape[1:] in ((3, 32, 32), (32, 32, 3)):
        assert pixels.shape == (len(array), 3, 32, 32)
    else:
        assert f"{array.dtype} {array.shape} found, uint8 (N, 3, 32, 32)" in errors[0]
