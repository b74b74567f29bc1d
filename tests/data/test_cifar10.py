from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_images, write_raw
from hypothesis import given, settings
from hypothesis import strategies as st

from cifar_resnet.data import cifar10
from cifar_resnet.errors import UserError


def test_decoding_inverts_encoding(tmp_path: Path) -> None:
    images = tiny_images(3, seed=1)
    rows = images.pixels.reshape(-1, 3, 1024).transpose(0, 2, 1)
    (tmp_path / "a.bin").write_bytes(cifar10.encode_records(rows, images.labels.tolist()))
    decoded = cifar10.read_records(tmp_path / "a.bin")
    assert np.array_equal(decoded.pixels, images.pixels)
    assert np.array_equal(decoded.labels, images.labels)


def test_a_file_with_too_few_images_is_an_error(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw")
    path = tmp_path / "raw/test_batch.bin"
    path.write_bytes(path.read_bytes()[: -cifar10.RECORD_BYTES])
    with pytest.raises(UserError, match="39 images found, 40 expected"):
        cifar10.read_test(path.parent)


@given(size=st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_a_size_that_is_not_a_multiple_of_the_record_size_is_an_error(
    tmp_path_factory: pytest.TempPathFactory, size: int
) -> None:
    path = tmp_path_factory.mktemp("records") / "a.bin"
    path.write_bytes(b"\1" * size)
    if size and size % cifar10.RECORD_BYTES == 0:
        assert len(cifar10.read_records(path)) == size // cifar10.RECORD_BYTES
    else:
        with pytest.raises(UserError, match=f"{size} bytes found"):
            cifar10.read_records(path)
