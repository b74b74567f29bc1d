"""Mistakes a user can mend: one line on the terminal, exit code 1, no traceback."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event


class UserError(Exception):
    """Names the key or file, what was found, what is allowed and what to do."""


def run(stage: Callable[[Path], int | None]) -> None:
    """Run a stage or command in the current folder and exit with the code that it returns; a UserError becomes its
    message and exit code 1, SIGTERM an interrupt."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    script = Path(sys.argv[0])
    name = script.parent.name if script.stem == "__main__" else script.stem
    try:
        sys.exit(stage(Path.cwd()))
    except UserError as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt as interrupt:
        sys.exit(f"{name}: interrupted; {interrupt or 'run the same command again'}")


@contextmanager
def wish_to_stop() -> Iterator[Event]:
    """An event that SIGINT or SIGTERM sets while the block runs, so that it can end where its work is whole."""
    wish = Event()
    before = {number: signal.signal(number, lambda *_: wish.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
