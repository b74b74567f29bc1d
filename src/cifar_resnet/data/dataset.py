"""Images and labels, in memory and as .npy files."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cifar_resnet.errors import UserError
from cifar_resnet.files import atomic_write

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Images:
    """pixels: uint8 (N, 3, 32, 32), channels R, G, B; labels: int64 (N,), the classes counted from 0."""

    pixels: Pixels
    labels: Labels

    def __post_init__(self) -> None:
        assert self.pixels.dtype == np.uint8, self.pixels.dtype
        assert self.pixels.shape[1:] == (3, 32, 32), self.pixels.shape
        assert self.labels.shape == (len(self.pixels),), self.labels.shape

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: Rows) -> "Images":
        return Images(self.pixels[rows], self.labels[rows])


def first_copies(pixels: Pixels) -> Rows:
    """For each image, the row of the first image with the same pixels."""
    records = pixels.reshape(len(pixels), -1).view("V3072").ravel()
    _, first, inverse = np.unique(records, return_index=True, return_inverse=True)
    return np.asarray(first[inverse])


def write_array(path: Path, array: NDArray[np.generic]) -> None:
    stream = BytesIO()  # np.save into a file does not say why it wrote too little
    np.save(stream, array, allow_pickle=False)
    with atomic_write(path) as temporary:
        temporary.write_bytes(stream.getbuffer())


def read_array(path: Path, mmap_mode: Literal["r"] | None = None) -> NDArray[np.generic]:
    """Read a .npy file, with `mmap_mode` "r" only the parts that are used.

    Raises:
        UserError: if the file is missing, damaged or pickled.
    """
    try:
        array: NDArray[np.generic] = np.load(path, mmap_mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path}: not a readable .npy array ({error}); run `dvc repro preprocess` to write it again"
        ) from None
    return array


def write_split(folder: Path, split: str, images: Images) -> None:
    """Write `<split>_images.npy` and `<split>_labels.npy`."""
    write_array(folder / f"{split}_images.npy", images.pixels)
    write_array(folder / f"{split}_labels.npy", images.labels)


def read_split(folder: Path, split: str) -> Images:
    """Read what `write_split` has written.

    Raises:
        UserError: if a file is missing or damaged, or if the two do not fit together.
    """
    pixels, labels = (read_array(folder / f"{split}_{name}.npy") for name in ("images", "labels"))
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (3, 32, 32) or labels.shape != (len(pixels),):
        found = f"{pixels.dtype} {pixels.shape} with labels {labels.shape} found, uint8 (N, 3, 32, 32) with (N,) needed"
        raise UserError(f"{folder}/{split}_images.npy: {found}; run `dvc repro preprocess` to write it again")
    return Images(pixels.astype(np.uint8, copy=False), labels.astype(np.int64, copy=False))
