"""Errors that a user can fix: one line on the terminal, exit code 1, no traceback."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event


class UserError(Exception):
    """Names the key or file, what was found, what is allowed and what to do."""


def run(main: Callable[[Path], int | None], name: str = "") -> None:
    """Run a stage or command in the current folder and exit with the code that it returns.

    A UserError becomes its message and exit code 1, SIGTERM an interrupt. Messages start with `name`, by default that
    of the script.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    name = name or Path(sys.argv[0]).stem
    try:
        sys.exit(main(Path.cwd()))
    except UserError as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt as interrupt:
        sys.exit(f"{name}: interrupted; {interrupt or 'run the same command again'}")


@contextmanager
def stop_on_signal() -> Iterator[Event]:
    """Yield an event that SIGINT or SIGTERM sets while the block runs, so that the work can stop between two steps."""
    stop_event = Event()
    before = {number: signal.signal(number, lambda *_: stop_event.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop_event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
