"""Read images from .npy and .npz files and from CIFAR-10's own formats, in batches of uint8 (N, 3, 32, 32)."""

import os
from collections.abc import Iterator
from typing import IO
from zipfile import ZipFile

import numpy as np

from cifar_resnet.data import cifar10
from cifar_resnet.data.dataset import Pixels

SIDE = 32
MAX_PICKLED = 20_000  # images of a pickled batch, which is read into memory; the official ones hold 10,000
PIXEL_BYTES = 3 * SIDE * SIDE
SHAPES = ((3, SIDE, SIDE), (SIDE, SIDE, 3))


def read_arrays(stream: IO[bytes], batch_size: int, *, packed: bool) -> Iterator[Pixels]:
    """The images of a .npy file or, if `packed`, of a .npz file: its array `images` or its only array."""
    if not packed:
        yield from array_batches(stream, batch_size)
        return
    with ZipFile(stream) as archive:
        members = archive.namelist()
        if len(members) != 1 and "images.npy" not in members:
            raise ValueError(f"{len(members)} arrays found, a single array or one named images needed")
        with archive.open(members[0] if len(members) == 1 else "images.npy") as content:
            yield from array_batches(content, batch_size)


def array_batches(stream: IO[bytes], batch_size: int) -> Iterator[Pixels]:
    """Read the content of a .npy file batch by batch; its dtype excludes pickled arrays before any content is read.

    Raises:
        ValueError: if it is not a .npy file, not uint8 (N, 3, 32, 32) or (N, 32, 32, 3), or truncated.
    """
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(stream)
    if dtype != np.uint8 or len(shape) != 4 or shape[1:] not in SHAPES or shape[0] < 1:
        raise ValueError(f"{dtype} {shape} found, uint8 (N, 3, 32, 32) or (N, 32, 32, 3) with N > 0 needed")
    if fortran:
        raise ValueError("Fortran order found, C order needed; save it with np.ascontiguousarray")
    for start in range(0, shape[0], batch_size):
        count = min(batch_size, shape[0] - start)
        content = stream.read(count * PIXEL_BYTES)
        if len(content) != count * PIXEL_BYTES:
            raise ValueError(f"truncated: its header announces {shape[0]:,} images")
        array = np.frombuffer(content, np.uint8).reshape(count, *shape[1:])
        yield array if shape[1:] == SHAPES[0] else np.ascontiguousarray(array.transpose(0, 3, 1, 2))


def read_bin(stream: IO[bytes], batch_size: int) -> Iterator[Pixels]:
    """The images of a file of CIFAR's binary version; labels are ignored.

    Raises:
        ValueError: if the size is not a multiple of a record's size.
    """
    size = stream.seek(0, os.SEEK_END)
    if size == 0 or size % cifar10.RECORD_BYTES:
        raise ValueError(f"{size} bytes found, a multiple of {cifar10.RECORD_BYTES} needed")
    stream.seek(0)
    while content := stream.read(batch_size * cifar10.RECORD_BYTES):
        records = np.frombuffer(content, np.uint8).reshape(-1, cifar10.RECORD_BYTES)
        yield np.ascontiguousarray(records[:, 1:]).reshape(-1, *SHAPES[0])


def read_pickle(stream: IO[bytes]) -> Iterator[Pixels]:
    """The images of a batch of CIFAR's Python version. The pickle cannot run code (see `unpickle_batch`).

    Raises:
        ValueError: if its data are not images.
        Exception: of any type, if the pickle is damaged or forbidden.
    """
    batch = cifar10.unpickle_batch(read_at_most(stream, MAX_PICKLED * cifar10.RECORD_BYTES))
    data = np.asanyarray(batch[b"data"] if b"data" in batch else batch["data"])
    if data.dtype != np.uint8 or data.shape[1:] != (PIXEL_BYTES,) or not 0 < len(data) <= MAX_PICKLED:
        needed = f"uint8 (N, {PIXEL_BYTES}), N up to {MAX_PICKLED:,}, needed"
        raise ValueError(f"data {data.dtype} {data.shape} found, {needed}")
    yield np.ascontiguousarray(data).reshape(-1, *SHAPES[0])


def read_at_most(stream: IO[bytes], limit: int) -> bytes:
    content = stream.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"more than {limit:,} bytes")
    return content
