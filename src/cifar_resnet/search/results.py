"""What becomes of a search: its table, the best as DVC experiments, or in params.yaml."""

import csv
import difflib
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifar_resnet.errors import UserError
from cifar_resnet.files import atomic_write
from cifar_resnet.params.file import Params, parse_yaml, replace_values, with_overrides
from cifar_resnet.search.study import Result

COLUMNS = ("number", "outcome", "accuracy", "epochs", "parameters", "multiply_adds", "seconds", "reason", "retry_of")


def rank_trials(results: Sequence[Result]) -> list[Result]:
    """The finished trials, the most accurate first."""
    finished = [result for result in results if result.outcome == "finished"]
    return sorted(finished, key=lambda result: (-(result.accuracy or 0), result.number))


def pareto_front(costs: Sequence[int], accuracy: Sequence[float]) -> list[int]:
    """The places of those that no other beats in cost and accuracy."""
    order = sorted(range(len(costs)), key=lambda place: (costs[place], -accuracy[place]))
    found: list[int] = []
    for place in order:
        if not found or accuracy[place] > accuracy[found[-1]]:
            found.append(place)
    return found


def training_command(result: Result, *options: str) -> list[str]:
    """What trains a trial's configuration in full."""
    return ["dvc", "exp", "run", *options, *(word for change in override_arguments(result) for word in ("-S", change))]


def override_arguments(result: Result) -> list[str]:
    return [f"{name}={to_yaml(value)}" for name, value in result.changes.items()]


def to_yaml(value: Any) -> str:
    """As YAML and `-S` take it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def results_table(results: Sequence[Result], top: int) -> str:
    """The best trials with their commands."""
    lines = [f"{'trial':>5}  {'accuracy':>8}  {'parameters':>10}  {'multiply-adds':>13}  {'seconds':>7}"]
    for each in rank_trials(results)[:top]:
        lines.append(
            f"{each.number:>5}  {each.accuracy:>8.2%}  {each.parameters:>10,}  {each.multiply_adds:>13,}  "
            f"{each.seconds:>7.0f}  {shlex.join(training_command(each))}"
        )
    return "\n".join(lines)


def write_trials_csv(path: Path, results: Sequence[Result]) -> None:
    names = sorted({name for result in results for name in result.changes})
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow([*COLUMNS, *names])
        for each in results:
            values = [to_yaml(each.changes[name]) if name in each.changes else "" for name in names]
            table.writerow([*(getattr(each, column) for column in COLUMNS), *values])


def queue_experiments(root: Path, study: str, chosen: Sequence[Result]) -> None:
    """Put full trainings in DVC's queue.

    Raises:
        UserError: if DVC refuses one; those before it are in the queue.
    """
    for each in chosen:
        words = training_command(each, "--queue", "--name", f"{study}-trial-{each.number}")
        done = subprocess.run([sys.executable, "-m", *words], cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"trial {each.number}: {' '.join((done.stderr or done.stdout).split())[-300:]}")


def apply_trial(root: Path, params: Params, result: Result) -> str:
    """Write a trial's configuration into params.yaml, whose comments and layout stay; returns the difference.

    Raises:
        UserError: if the written values would be others; the file stays as it is.
    """
    path = root / "params.yaml"
    before = path.read_text(encoding="utf-8")
    after = replace_values(before, result.changes)
    if Params.model_validate(parse_yaml(after)) != with_overrides(params, result.changes):
        raise UserError(f"params.yaml: cannot be changed; write by hand: {' '.join(override_arguments(result))}")
    with atomic_write(path) as temporary:
        temporary.write_text(after, encoding="utf-8")
    return "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), "before", "params.yaml"))
