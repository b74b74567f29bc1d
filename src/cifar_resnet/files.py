"""Atomic writes, JSON and CSV files, and file hashes."""

import csv
import errno
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from cifar_resnet.errors import UserError

STAGES = {"raw": "download", "prepared": "preprocess", "model": "train", "evaluation": "evaluate"}  # by folder in data


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file whose content `path` gets when the block ends without an error.

    A regular file is replaced and keeps its permissions. A symbolic link is followed. A pipe, a device, or the file of
    stdout or stderr is written to.

    Raises:
        OSError: if `path` is a folder or read-only, if a folder above it cannot be made, or if the disk is full; it
            names `path`.
    """
    status, target = _status(path), path.resolve()
    descriptor = _standard_stream(status)
    if status is not None and descriptor is None:
        _check_writable(path, status)
    is_replaceable = status is None or (
        stat.S_ISREG(status.st_mode) and descriptor is None and os.access(target.parent, os.W_OK)
    )
    with _temporary_folder(path, target.parent if is_replaceable else None) as folder:
        temporary = folder / path.name
        yield temporary
        if not (is_replaceable and _replace(target, temporary, status)):
            _copy_into(path, temporary, descriptor)


@contextmanager
def _temporary_folder(path: Path, parent: Path | None) -> Iterator[Path]:
    """Yield a hidden folder in `parent`, which is made; errors about either, or of a full disk, name `path` instead."""
    folder: str | None = None
    try:
        with (
            _made_folder(parent) if parent else nullcontext(),
            tempfile.TemporaryDirectory(prefix=".", dir=parent) as folder,
        ):
            yield Path(folder)
    except OSError as error:
        is_full = error.filename is None and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        if folder is not None and not is_full and not str(error.filename).startswith(folder):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def _made_folder(path: Path) -> Iterator[None]:
    """Make a folder and those above it; if the block raises, remove what was made."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # not empty: another program has used it
                folder.rmdir()
        raise


def _status(path: Path) -> os.stat_result | None:
    """The status of the file that `path` leads to; None if there is none."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _standard_stream(status: os.stat_result | None) -> int | None:
    """The descriptor of stdout or stderr, if one of them is the file with this status."""
    for descriptor in (1, 2):
        with suppress(OSError):  # a closed descriptor
            if status is not None and os.path.samestat(status, os.fstat(descriptor)):
                return descriptor
    return None


def _check_writable(path: Path, status: os.stat_result) -> None:
    """Raise an OSError for a folder or a read-only file."""
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    # Root may write to every file. A regular file without any write permission is protected on purpose, for example
    # because it is a link into DVC's cache.
    if not os.access(path, os.W_OK) or (stat.S_ISREG(status.st_mode) and not status.st_mode & 0o222):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _replace(target: Path, temporary: Path, status: os.stat_result | None) -> bool:
    """Replace a file, and keep its owner and permissions; False if its folder does not allow that."""
    if status is not None:
        with suppress(PermissionError):  # only root can give files to other users
            os.chown(temporary, status.st_uid, status.st_gid)
        temporary.chmod(stat.S_IMODE(status.st_mode))
    try:
        temporary.replace(target)
    except OSError as error:
        if error.errno not in {errno.EBUSY, errno.EPERM}:  # a mounted file, or a file of another user in /tmp
            raise
        return False
    return True


def _copy_into(path: Path, source: Path, descriptor: int | None) -> None:
    """Write the content of `source` to an open descriptor, or into the existing file or device `path`."""
    sys.stdout.flush()
    try:
        output = os.open(path, os.O_WRONLY | os.O_TRUNC) if descriptor is None else os.dup(descriptor)
        with source.open("rb") as content, os.fdopen(output, "wb") as stream:
            shutil.copyfileobj(content, stream)
    except OSError as error:  # an error of write() does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_object(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object that a stage has written.

    Raises:
        UserError: if the file is missing or damaged, or if the object has not all `keys`; names the stage to run.
    """
    try:
        value: dict[str, Any] = read_json(path)
        missing = [key for key in keys if key not in value]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _unusable(path, error) from None
    if missing or not isinstance(value, dict):
        raise _unusable(path, f"no {', '.join(missing)}" if missing else "no JSON object")
    return value


def read_rows(path: Path, *columns: str) -> list[dict[str, str]]:
    """Read a CSV file with a header that a stage has written.

    Raises:
        UserError: if the file is missing, not UTF-8, or has not all `columns` in every row.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            table = csv.DictReader(stream)
            rows, header = list(table), table.fieldnames or ()
    except (OSError, ValueError, csv.Error) as error:
        raise _unusable(path, error) from None
    missing = [column for column in columns if column not in header]
    if missing:
        raise _unusable(path, f"no column {', '.join(missing)}")
    if any(None in row or None in row.values() for row in rows):
        raise _unusable(path, "a row is longer or shorter than the header")
    return rows


def _unusable(path: Path, reason: object) -> UserError:
    command = f"dvc repro {STAGES.get(path.parent.name, '')}".rstrip()
    if isinstance(reason, FileNotFoundError):
        return UserError(f"{path}: not found; run `{command}`")
    if isinstance(reason, OSError):
        return UserError(f"{path}: cannot be used ({reason.strerror})")
    return UserError(f"{path} is damaged ({reason}); run `{command}` to write it again")


def file_hash(path: Path, algorithm: str = "md5") -> str:
    """The file's hash in hexadecimal; MD5 by default, as in DVC and in CIFAR-10's published checksums."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()
