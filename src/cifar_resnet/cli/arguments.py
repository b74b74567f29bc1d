"""Types of command-line arguments."""

import math
from argparse import ArgumentTypeError
from pathlib import Path


def not_empty(text: str) -> str:
    if not text:
        raise ArgumentTypeError("an empty text is no path or name; is a variable of the shell unset?")
    return text


def path(text: str) -> Path:
    return Path(not_empty(text))


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


def port_number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ArgumentTypeError(f"{text}: a number from 1 to 65535 needed")
    return int(text)
