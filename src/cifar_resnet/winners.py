"""What becomes of a search: its table, the best as DVC experiments, or in params.yaml."""

import csv
import difflib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifar_resnet import params
from cifar_resnet.errors import UserError
from cifar_resnet.files import whole
from cifar_resnet.params import Params
from cifar_resnet.search import Result

COLUMNS = ("number", "outcome", "accuracy", "epochs", "parameters", "multiply_adds", "seconds", "reason", "retry_of")


def best(results: Sequence[Result]) -> list[Result]:
    """The finished trials, the most accurate first."""
    finished = [result for result in results if result.outcome == "finished"]
    return sorted(finished, key=lambda result: (-(result.accuracy or 0), result.number))


def front(costs: Sequence[int], accuracy: Sequence[float]) -> list[int]:
    """The places of those that no other beats in cost and accuracy."""
    order = sorted(range(len(costs)), key=lambda place: (costs[place], -accuracy[place]))
    found: list[int] = []
    for place in order:
        if not found or accuracy[place] > accuracy[found[-1]]:
            found.append(place)
    return found


def command(result: Result, *options: str) -> list[str]:
    """What trains a trial's configuration in full."""
    return ["dvc", "exp", "run", *options, *(word for change in overrides(result) for word in ("-S", change))]


def overrides(result: Result) -> list[str]:
    return [f"{name}={written(value)}" for name, value in result.changes.items()]


def written(value: Any) -> str:
    """As YAML and `-S` take it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def report(results: Sequence[Result], top: int) -> str:
    """The best trials with their commands."""
    lines = [f"{'trial':>5}  {'accuracy':>8}  {'parameters':>10}  {'multiply-adds':>13}  {'seconds':>7}"]
    for each in best(results)[:top]:
        lines.append(
            f"{each.number:>5}  {each.accuracy:>8.2%}  {each.parameters:>10,}  {each.multiply_adds:>13,}  "
            f"{each.seconds:>7.0f}  {shlex.join(command(each))}"
        )
    return "\n".join(lines)


def write_table(path: Path, results: Sequence[Result]) -> None:
    names = sorted({name for result in results for name in result.changes})
    with whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow([*COLUMNS, *names])
        for each in results:
            values = [written(each.changes[name]) if name in each.changes else "" for name in names]
            table.writerow([*(getattr(each, column) for column in COLUMNS), *values])


def queue(root: Path, study: str, chosen: Sequence[Result]) -> None:
    """Put full trainings in DVC's queue.

    Raises:
        UserError: if DVC refuses one; those before it are in the queue.
    """
    for each in chosen:
        words = command(each, "--queue", "--name", f"{study}-trial-{each.number}")
        done = subprocess.run([sys.executable, "-m", *words], cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"trial {each.number}: {' '.join((done.stderr or done.stdout).split())[-300:]}")


def apply(root: Path, values: Params, result: Result) -> str:
    """Write a trial's configuration into params.yaml, whose comments stay; returns the difference.

    Raises:
        UserError: if a value is not on a line of its own; the file is as it was.
    """
    path = root / "params.yaml"
    before = path.read_text(encoding="utf-8")
    after = before
    for name, value in result.changes.items():
        section, key = name.split(".")
        after = replaced(after, section, key, written(value).replace(",", ", "))
    with whole(path) as temporary:
        temporary.write_text(after, encoding="utf-8")
        if not holds(temporary, params.changed(values, result.changes)):
            raise UserError(
                f"params.yaml: its values are not each on a line of their own; write them by hand: "
                f"{' '.join(overrides(result))}"
            )
    return "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), "before", "params.yaml"))


def replaced(text: str, section: str, key: str, value: str) -> str:
    """Another value on the line of a key, its comment in the same column if it fits."""

    def line(found: re.Match[str]) -> str:
        width = len(found["value"]) + len(found["space"])
        comment = found["comment"]
        return found["head"] + (value.ljust(max(width - 1, 0)) + " " + comment if comment else value)

    head = rf"(?P<head>^{section}:[^\n]*\n(?:[ #][^\n]*\n|\n)*?  {key}: )"
    return re.sub(
        head + r"(?P<value>[^\n#]*?)(?P<space> *)(?P<comment>#[^\n]*)?$", line, text, count=1, flags=re.MULTILINE
    )


def holds(path: Path, wanted: Params) -> bool:
    try:
        return params.load(path) == wanted
    except UserError:
        return False
