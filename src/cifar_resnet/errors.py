"""Errors that a user can fix (one line, exit code 1, no traceback), and signals."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from threading import Event


class UserError(Exception):
    """Its message names the key or file, what was found, what is allowed and how to fix it."""


def run(main: Callable[[Path], int | None], name: str = "") -> None:
    """Run a stage or command in the current folder and exit with the code that it returns.

    A UserError prints its message and exits with code 1; so does an OSError, for example of a full disk. SIGTERM acts
    as an interrupt. Messages start with `name`, by default the name of the script.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):  # file names may have characters that the encoding of a pipe has not
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for closed in (key for key in ("stdout", "stderr") if getattr(sys, key) is None):
        stream = Path(os.devnull).open("w")  # noqa: SIM115
        setattr(sys, closed, stream)
    name = name or Path(sys.argv[0]).stem
    try:
        code = main(current_folder())
        sys.stdout.flush()
    except UserError as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt as interrupt:
        sys.exit(f"{name}: interrupted; {str(interrupt) or 'run the same command again'}")
    except BrokenPipeError:  # the reader, for example `head`, has closed the pipe
        sys.exit(1)
    except OSError as error:
        sys.exit(f"{name}: {describe(error)}")
    finally:
        _discard_unwritable_stdout()
    sys.exit(code)


def current_folder() -> Path:
    """
    Raises:
        UserError: if it was deleted.
    """
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise UserError("the current folder no longer exists; change to another one") from None


def describe(error: OSError) -> str:
    """One line with the file, or what is full if the file is not known."""
    path = error.filename2 or error.filename
    if path:
        return f"{path}: cannot be used ({error.strerror})"
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return f"the output cannot be written ({error.strerror})"
    return str(error)


def _discard_unwritable_stdout() -> None:
    """Python would write at its end what stdout, a closed pipe or full disk, has already refused."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def stop_on_signal() -> Iterator[Event]:
    """Yield an event that SIGINT or SIGTERM sets, so that the block can stop between two steps."""
    stop_event = Event()
    previous = {sig: signal.signal(sig, lambda *_: stop_event.set()) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop_event
    finally:
        for sig, handler in previous.items():
            signal.signal(sig, handler)
