"""Mistakes a user can mend: one line on the terminal, exit code 1, no traceback."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path


class UserError(Exception):
    """Names the key or file, what was found, what is allowed and what to do."""


def run(stage: Callable[[Path], None]) -> None:
    """Run a stage in the current folder; a UserError becomes its message and exit code 1, SIGTERM an interrupt."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        stage(Path.cwd())
    except UserError as error:
        sys.exit(f"{Path(sys.argv[0]).stem}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{Path(sys.argv[0]).stem}: interrupted; nothing was written")
