"""Crash recovery: the state of unfinished work, in a folder that one process at a time may use."""

import fcntl
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch

from cifar_resnet.errors import UserError

NEWEST, PREVIOUS, LOCK = "state", "state.previous", "lock"
DIGEST_BYTES = 32


def fingerprint(*parts: Any) -> str:
    """Of whatever decides the result; JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class Checkpoint:
    """The newest state and the one before it: each a SHA-256 digest, then what torch.save writes.

    A state is written beside its place, flushed to the disk and renamed, so a kill at any moment leaves a whole one.
    """

    def __init__(self, folder: Path, *, minutes: float) -> None:
        self.folder = folder
        self.minutes = minutes
        self.saved_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last state is older than `minutes`."""
        return time.monotonic() - self.saved_at >= 60 * self.minutes

    def save(self, state: dict[str, Any]) -> None:
        """
        Raises:
            UserError: if the disk is full or read-only; the states that were there remain.
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
            if (
                _whole(newest) is not None
            ):  # a damaged one must not take the place of the one that training goes on from
                newest.replace(self.folder / PREVIOUS)
            temporary.replace(newest)
            _flush(self.folder)
        except OSError as error:
            raise _unusable(self.folder, error) from None
        finally:
            temporary.unlink(missing_ok=True)
        self.saved_at = time.monotonic()

    @property
    def is_new(self) -> bool:
        return not any((self.folder / name).exists() for name in (NEWEST, PREVIOUS))

    def load(self) -> tuple[dict[str, Any] | None, list[str]]:
        """(the newest whole state or None, what was wrong with newer ones)."""
        wrong: list[str] = []
        for path in (self.folder / NEWEST, self.folder / PREVIOUS):
            content = _whole(path)
            if content is not None:
                return torch.load(io.BytesIO(content), weights_only=True), wrong
            wrong.append(f"{path.name} is {'damaged' if path.exists() else 'missing'}")
        return None, [] if self.is_new else wrong

    def remove(self) -> None:
        """Leave nothing behind; called when the work is done."""
        shutil.rmtree(self.folder)


@contextmanager
def claimed(folder: Path, *, minutes: float) -> Iterator[Checkpoint]:
    """The checkpoint in `folder`, which is this process's alone while the block runs.

    Raises:
        UserError: if another process has it, or if it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / LOCK).open("a+", encoding="ascii")
    except OSError as error:
        raise _unusable(folder, error) from None
    with stream:
        if not _lock(stream) or not _is_still(stream, folder / LOCK):
            raise UserError(
                f"process {(folder / LOCK).read_text(encoding='ascii') or 'unknown'} is training the same params on "
                f"the same data (it holds {folder}): wait for it, or stop it and run again to go on from its state"
            )
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        for left in folder.glob(f"{NEWEST}.[0-9]*"):
            left.unlink()
        yield Checkpoint(folder, minutes=minutes)


def is_claimed(folder: Path) -> bool:
    """Whether a living process uses `folder`."""
    try:
        with (folder / LOCK).open("a+", encoding="ascii") as stream:
            return not _lock(stream)
    except OSError:
        return False


def _whole(path: Path) -> bytes | None:
    """What a state's file holds behind its digest; None if it is missing or damaged."""
    content = path.read_bytes() if path.exists() else b""
    fits = hashlib.sha256(content[DIGEST_BYTES:]).digest() == content[:DIGEST_BYTES]
    return content[DIGEST_BYTES:] if fits else None


def _lock(stream: TextIO) -> bool:
    """Take the lock unless another process has it; the kernel frees it when its holder ends, however that is."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(stream: TextIO, path: Path) -> bool:
    """False if the former holder has removed the file meanwhile."""
    return path.exists() and os.fstat(stream.fileno()).st_ino == path.stat().st_ino


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{folder}: cannot save the training's state ({error.strerror}); mend that and run the same command again, "
        "it goes on from the last state that was saved"
    )
