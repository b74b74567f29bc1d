"""Types of command-line arguments, and errors that name them."""

import math
from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 50_000:
        raise ArgumentTypeError(f"{text!r} is not a number from 1 to 50,000")
    return int(text)


def positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


@contextmanager
def output_errors_name(path: Path) -> Iterator[None]:
    """An OSError about `path`, or about a folder above it that cannot be made, names `path` as the user wrote it."""
    try:
        yield
    except OSError as error:
        failed = Path(error.filename) if isinstance(error.filename, str) else None
        if failed is None or not path.resolve().is_relative_to(failed.resolve()):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
