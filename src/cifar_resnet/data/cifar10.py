"""CIFAR-10's file format and checksums.

Format: the "binary version", 10,000 records per file, each one label byte and 3,072 pixel bytes (planes R, G, B).
Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; the MD5s are the publisher's.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from cifar_resnet.data.dataset import Images
from cifar_resnet.errors import UserError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
RECORD_BYTES = 1 + 3 * 32 * 32
RECORDS_PER_FILE = 10_000


def unpickle_batch(content: bytes) -> Any:
    """Load a pickle of numpy arrays and builtin containers; Python 2's strings become bytes.

    Raises:
        pickle.UnpicklingError: if the pickle refers to any other class or function; it is not called.
        Exception: any other type, if the content is damaged.
    """
    return _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()


class _BatchUnpickler(pickle.Unpickler):
    """Loads only numpy arrays and builtin containers, because a pickle can run any function."""

    ALLOWED = frozenset(
        {
            *(("_reconstruct", "multiarray"), ("_frombuffer", "numeric"), ("encode", "_codecs")),
            *(("ndarray", "numpy"), ("dtype", "numpy")),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (name, module.rsplit(".", 1)[-1]) not in self.ALLOWED or module.split(".")[0] not in {"numpy", "_codecs"}:
            raise pickle.UnpicklingError(f"refused: the file wants to run {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def encode_records(rows: np.ndarray[Any, np.dtype[np.uint8]], labels: list[int]) -> bytes:
    """Encode uint8 rows (N, 1,024, 3) as records of the binary version."""
    planes = rows.transpose(0, 2, 1).reshape(len(rows), -1)
    return np.hstack([np.asarray(labels, dtype=np.uint8).reshape(-1, 1), planes]).tobytes()


def read_records(path: Path) -> Images:
    """Read one `.bin` file.

    Raises:
        UserError: if the file is missing, empty, or not a multiple of the record size.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing; run `dvc repro download`")
    size = path.stat().st_size
    if size == 0 or size % RECORD_BYTES:
        raise UserError(
            f"{path}: {size} bytes found, a multiple of {RECORD_BYTES} expected; run `dvc repro -f download`"
        )
    records = np.fromfile(path, dtype=np.uint8).reshape(-1, RECORD_BYTES)
    return Images(np.ascontiguousarray(records[:, 1:]).reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64))


def read_batch(path: Path) -> Images:
    """Read one of the six published files.

    Raises:
        UserError: if the file is missing or does not contain 10,000 images.
    """
    images = read_records(path)
    if len(images) != RECORDS_PER_FILE:
        raise UserError(f"{path}: {len(images)} images found, {RECORDS_PER_FILE} expected; run `dvc repro -f download`")
    return images


def read_train(folder: Path) -> Images:
    """Read the five training files; raises as `read_batch` does."""
    parts = [read_batch(folder / name) for name in TRAIN_FILES]
    return Images(np.concatenate([part.pixels for part in parts]), np.concatenate([part.labels for part in parts]))


def read_test(folder: Path) -> Images:
    """Read the test file; raises as `read_batch` does."""
    return read_batch(folder / TEST_FILE)
