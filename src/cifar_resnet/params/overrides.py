"""Values as arguments of `dvc exp run -S`. `python -m cifar_resnet.params.overrides FILE` prints those of a preset."""

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from cifar_resnet.errors import UserError, run
from cifar_resnet.params.file import read_yaml


def to_hydra(value: Any) -> str:
    """The text that DVC's parser, Hydra, reads as this value: JSON, but simple words without quotes."""
    if isinstance(value, list):
        return f"[{','.join(map(to_hydra, value))}]"
    if not isinstance(value, str):
        return json.dumps(value, default=str)  # YAML has dates
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", value) and value.lower() not in {
        "true",
        "false",
        "null",
        "nan",
        "inf",
    }:
        return value
    escaped = re.sub(r'(\\+)(?="|\Z)', r"\1\1", value).replace('"', '\\"')  # a backslash escapes only before a quote
    return f'"{escaped}"'


def preset_options(path: Path) -> str:
    """The options of `dvc exp run` for the values of a preset, quoted for a shell.

    Raises:
        UserError: if the file is not a YAML mapping from full names, for example train.epochs, to values.
    """
    values = read_yaml(path, str(path))
    if not values or not isinstance(values, dict) or any(isinstance(value, dict) for value in values.values()):
        raise UserError(f"{path}: a line per value needed, with its full name: `train.epochs: 4`")
    return " ".join(f"-S {shlex.quote(f'{name}={to_hydra(value)}')}" for name, value in values.items())


def print_preset_options(root: Path) -> None:
    print(preset_options(root / sys.argv[1]))


if __name__ == "__main__":
    run(print_preset_options, "preset")
