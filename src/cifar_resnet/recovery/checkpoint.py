"""The saved state of an unfinished training, in a folder that one process at a time uses."""

import hashlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from cifar_resnet.errors import UserError
from cifar_resnet.files import file_hash

NEWEST, PREVIOUS, LOCK, OWNER = "state", "state.previous", "lock", "pid"
HASH_BYTES = 32
SCRATCH = "data/scratch"
CODE = ("data", "models", "inference", "training", "recovery", "device")  # affects the result or the state's format


def training_folder(root: Path, *parts: Any) -> Path:
    """The folder for the state of a training, named after everything that affects its result.

    It is in the project's root, also in `dvc exp run --temp`, which works in a temporary copy.

    Args:
        parts: JSON values. The hash of the imported code and the version of torch are added.
    """
    modules = {name: module.__file__ for name, module in sys.modules.items() if name.startswith("cifar_resnet.")}
    code = {name: file_hash(Path(file)) for name, file in modules.items() if file and name.split(".")[1] in CODE}
    key = fingerprint(*parts, code, str(torch.__version__))
    return Path(os.environ.get("DVC_ROOT", root)).resolve() / SCRATCH / key


def fingerprint(*parts: Any) -> str:
    """A short hash of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class Checkpoint:
    """The newest state and the previous one, each a SHA-256 hash followed by the output of torch.save.

    A state is written to a temporary file, flushed to the disk and renamed. After a kill at any time, one is complete.
    """

    def __init__(self, folder: Path, *, minutes: float) -> None:
        self.folder = folder
        self.minutes = minutes
        self.saved_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the newest state is older than `minutes`."""
        return time.monotonic() - self.saved_at >= 60 * self.minutes

    def save(self, state: dict[str, Any]) -> None:
        """Save a state; the newest one becomes the previous one.

        Raises:
            UserError: if the disk is full or read-only; the earlier states remain.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        temporary, newest = self.folder / f"{NEWEST}.{os.getpid()}", self.folder / NEWEST
        try:
            with temporary.open("wb") as stream:
                stream.write(hashlib.sha256(content).digest())
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            if read_verified(newest) is not None:  # a damaged state must not replace a good one
                newest.replace(self.folder / PREVIOUS)
            temporary.replace(newest)
            fsync_folder(self.folder)
        except OSError as error:
            raise _save_error(self.folder, error) from None
        finally:
            temporary.unlink(missing_ok=True)
        self.saved_at = time.monotonic()

    @property
    def is_new(self) -> bool:
        """Whether nothing is saved yet."""
        return not any((self.folder / name).exists() for name in (NEWEST, PREVIOUS))

    def load(self) -> tuple[dict[str, Any] | None, list[str]]:
        """(the newest complete state or None, the problems of newer ones)."""
        problems: list[str] = []
        for path in (self.folder / NEWEST, self.folder / PREVIOUS):
            content = read_verified(path)
            if content is not None:
                return torch.load(io.BytesIO(content), weights_only=True), problems
            problems.append(f"{path.name} is {'damaged' if path.exists() else 'missing'}")
        return None, [] if self.is_new else problems

    def remove(self) -> None:
        """Delete the folder; called when the work is done. Windows keeps the lock file, which is still open."""
        shutil.rmtree(self.folder, ignore_errors=sys.platform == "win32")


@contextmanager
def lock_folder(folder: Path, *, minutes: float) -> Iterator[Checkpoint]:
    """Yield the checkpoint in `folder`, which no other process can use while the block runs.

    The operating system releases the lock when the process ends, also after a kill.

    Raises:
        UserError: if another process uses the folder, or if the folder cannot be written.
    """
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"process {_owner(folder)} is training the same params on the same data (it uses {folder}): wait for it, "
            "or stop it and run this command again to continue from its state"
        ) from None
    except OSError as error:
        raise _save_error(folder, error) from None
    try:
        (folder / OWNER).write_text(str(os.getpid()), encoding="ascii")
        for leftover in folder.glob(f"{NEWEST}.[0-9]*"):
            leftover.unlink()
        yield Checkpoint(folder, minutes=minutes)
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a running process uses `folder`."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, blocking=False):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def _owner(folder: Path) -> str:
    try:
        return (folder / OWNER).read_text(encoding="ascii")
    except OSError:
        return "unknown"


def read_verified(path: Path) -> bytes | None:
    """The content of a state file without its hash; None if the file is missing or damaged."""
    content = path.read_bytes() if path.exists() else b""
    intact = hashlib.sha256(content[HASH_BYTES:]).digest() == content[:HASH_BYTES]
    return content[HASH_BYTES:] if intact else None


def fsync_folder(folder: Path) -> None:
    """Flush a rename to the disk; Windows cannot open a folder and needs no flush."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _save_error(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{folder}: cannot save the training's state ({error.strerror}); fix this and run the same command again "
        "to continue from the last saved state"
    )
