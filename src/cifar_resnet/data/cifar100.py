"""CIFAR-100's files, in the binary or the Python version, unpacked or as an archive; the classes are the 100 fine ones.

Format: as CIFAR-10's, but a record has two label bytes, the coarse and the fine one. Source: as in `cifar10`.
"""

import hashlib
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from cifar_resnet.data.cifar10 import unpickle_batch
from cifar_resnet.data.dataset import Images
from cifar_resnet.data.raw_dataset import Picture, RawDataset
from cifar_resnet.errors import UserError

BINARY_FILES = ("train.bin", "test.bin", "fine_label_names.txt")
PYTHON_FILES = ("train", "test", "meta")
FOLDERS = (".", "cifar-100-binary", "cifar-100-python")
PIXEL_BYTES = 3 * 32 * 32
RECORD_BYTES = 2 + PIXEL_BYTES
MAX_BYTES = 400_000_000  # of a file; train has 155 MB


def is_cifar100(path: Path) -> bool:
    """Whether the path is a folder with CIFAR-100's files, or a tar archive."""
    with suppress(OSError):  # no permission to read it
        return cifar100_folder(path) is not None or (path.is_file() and tarfile.is_tarfile(path))
    return False


def cifar100_folder(path: Path) -> Path | None:
    """The folder with the files: `path` itself, or the one that the archive unpacks to."""
    for folder in (path / name for name in FOLDERS):
        if any(all((folder / name).is_file() for name in names) for names in (BINARY_FILES, PYTHON_FILES)):
            return folder
    return None


def read_cifar100(path: Path, source: str) -> RawDataset:
    """Read the training and test images.

    Args:
        path: the unpacked folder, or the archive.
        source: for messages.

    Raises:
        UserError: if a file is missing or damaged.
    """
    try:
        files = read_folder(path) if path.is_dir() else read_tar(path)
        decode = decode_binary if set(BINARY_FILES) <= set(files) else decode_python
        classes, splits = decode(files)
        for images in splits.values():
            if not len(images) or not 0 <= images.labels.min() <= images.labels.max() < len(classes):
                raise ValueError(f"no images, or labels beyond the {len(classes)} classes")
    except Exception as error:  # of any type, from a damaged archive or pickle
        reason = f"no {error.args[0]}" if isinstance(error, KeyError) else " ".join(str(error).split())
        advice = "" if path.is_dir() else "; pack pictures in folders of classes as a zip, not as a tar"
        message = f"CIFAR-100's files cannot be read: {reason or type(error).__name__}{advice}"
        raise UserError(f"{source}: {message}") from None
    pictures = {
        name: [
            Picture(f"{name}[{row}]", hashlib.md5(image.tobytes(), usedforsecurity=False).hexdigest())
            for row, image in enumerate(images.pixels)
        ]
        for name, images in splits.items()
    }
    return RawDataset(source, classes, splits, pictures, is_published=True)


def read_folder(path: Path) -> dict[str, bytes]:
    folder = cifar100_folder(path)
    assert folder is not None
    names = [name for name in (*BINARY_FILES, *PYTHON_FILES) if (folder / name).is_file()]
    return {name: (folder / name).read_bytes() for name in names}


def read_tar(path: Path) -> dict[str, bytes]:
    """The content of the files by name, read in memory; all other members are skipped."""
    files = {}
    with tarfile.open(path, "r:*") as archive:
        for member in archive:
            name = Path(member.name).name
            if member.isfile() and name in (*BINARY_FILES, *PYTHON_FILES) and member.size <= MAX_BYTES:
                stream = archive.extractfile(member)
                assert stream is not None
                files[name] = stream.read()
    return files


def decode_binary(files: dict[str, bytes]) -> tuple[tuple[str, ...], dict[str, Images]]:
    """(classes, images by split) of the binary version."""
    classes = tuple(files["fine_label_names.txt"].decode("utf-8").split())
    splits = {}
    for name in ("train", "test"):
        content = files[f"{name}.bin"]
        if len(content) % RECORD_BYTES:
            raise ValueError(f"{name}.bin has {len(content)} bytes, a multiple of {RECORD_BYTES} needed")
        records = np.frombuffer(content, dtype=np.uint8).reshape(-1, RECORD_BYTES)
        pixels = np.ascontiguousarray(records[:, 2:]).reshape(-1, 3, 32, 32)
        splits[name] = Images(pixels, records[:, 1].astype(np.int64))
    return classes, splits


def decode_python(files: dict[str, bytes]) -> tuple[tuple[str, ...], dict[str, Images]]:
    """(classes, images by split) of the Python version. The pickles cannot run code (see `unpickle_batch`)."""
    names = with_text_keys(unpickle_batch(files["meta"]))["fine_label_names"]
    classes = tuple(name.decode("utf-8") if isinstance(name, bytes) else str(name) for name in names)
    splits = {}
    for name in ("train", "test"):
        batch = with_text_keys(unpickle_batch(files[name]))
        data = np.asarray(batch["data"])
        if data.dtype != np.uint8 or data.shape[1:] != (PIXEL_BYTES,):
            raise ValueError(f"{name}: data {data.dtype} {data.shape} found, uint8 (N, {PIXEL_BYTES}) needed")
        labels = np.asarray(batch["fine_labels"], dtype=np.int64)
        if labels.shape != (len(data),):
            raise ValueError(f"{name}: {len(data)} images, but labels of shape {labels.shape}")
        splits[name] = Images(np.ascontiguousarray(data).reshape(-1, 3, 32, 32), labels)
    return classes, splits


def with_text_keys(batch: dict[Any, Any]) -> dict[str, Any]:
    """Python 2 pickles have keys of bytes, later ones of text."""
    return {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
