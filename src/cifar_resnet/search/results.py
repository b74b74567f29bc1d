"""Results of a search: a table, the best trials as DVC experiments, or one trial in params.yaml."""

import csv
import difflib
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cifar_resnet.errors import UserError
from cifar_resnet.files import atomic_write
from cifar_resnet.params.file import Params, parse_yaml, replace_values, with_overrides
from cifar_resnet.params.overrides import to_hydra
from cifar_resnet.search.trial import TrialResult

COLUMNS = ("number", "outcome", "accuracy", "epochs", "parameters", "multiply_adds", "seconds", "reason", "retry_of")


def rank_trials(results: Sequence[TrialResult]) -> list[TrialResult]:
    """The finished trials, the most accurate first."""
    finished = [result for result in results if result.outcome == "finished"]
    return sorted(finished, key=lambda result: (-(result.accuracy or 0), result.number))


def pareto_front(costs: Sequence[int], accuracy: Sequence[float]) -> list[int]:
    """Indices of the points that no other point dominates in cost and accuracy, by cost."""
    order = sorted(range(len(costs)), key=lambda index: (costs[index], -accuracy[index]))
    front: list[int] = []
    for index in order:
        if not front or accuracy[index] > accuracy[front[-1]]:
            front.append(index)
    return front


def training_command(result: TrialResult, *options: str) -> list[str]:
    """The command that trains a trial's configuration in full."""
    overrides = [word for override in override_arguments(result) for word in ("-S", override)]
    return ["dvc", "exp", "run", *options, *overrides]


def override_arguments(result: TrialResult) -> list[str]:
    return [f"{name}={to_hydra(value)}" for name, value in result.overrides.items()]


def results_table(results: Sequence[TrialResult], top: int) -> str:
    """The best trials, each with the command that trains it in full."""
    lines = [f"{'trial':>5}  {'accuracy':>8}  {'parameters':>10}  {'multiply-adds':>13}  {'seconds':>7}"]
    for result in rank_trials(results)[:top]:
        lines.append(
            f"{result.number:>5}  {result.accuracy:>8.2%}  {result.parameters:>10,}  {result.multiply_adds:>13,}  "
            f"{result.seconds:>7.0f}  {shlex.join(training_command(result))}"
        )
    return "\n".join(lines)


def write_trials_csv(path: Path, results: Sequence[TrialResult]) -> None:
    """Write a row per trial: COLUMNS, then the overrides."""
    names = sorted({name for result in results for name in result.overrides})
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow([*COLUMNS, *names])
        for result in results:
            values = [to_hydra(result.overrides[name]) if name in result.overrides else "" for name in names]
            table.writerow([*(getattr(result, column) for column in COLUMNS), *values])


def queue_experiments(root: Path, study: str, results: Sequence[TrialResult]) -> int:
    """Add full trainings of trials to DVC's queue, except for those that exist already; returns their number.

    Raises:
        UserError: if DVC cannot run a queue, if it would not find own pictures, or if it reports an error; the trials
            before it are in the queue.
    """
    from cifar_resnet.versioning.revisions import require_temporary_copies
    from cifar_resnet.versioning.temporary_copy import require_own_pictures

    require_temporary_copies(root)
    require_own_pictures(root, [])
    queued = 0
    for result in results:
        name = f"{study}-trial-{result.number}"
        command = training_command(result, "--queue", f"--name={name}")
        done = subprocess.run([sys.executable, "-m", *command], cwd=root, capture_output=True, text=True, check=False)
        if "conflicts with existing experiment" in done.stderr:
            print(f"search: experiment {name} exists already, so trial {result.number} is not queued")
        elif done.returncode:
            raise UserError(f"trial {result.number}: {' '.join((done.stderr or done.stdout).split())[-300:]}")
        else:
            queued += 1
    return queued


def apply_trial(root: Path, params: Params, result: TrialResult) -> str:
    """Write a trial's configuration into params.yaml, keep comments, layout and line ends, and return the difference.

    Raises:
        UserError: if the result is not a valid params.yaml with exactly these values; then the file is not changed.
    """
    path = root / "params.yaml"
    before, newline = path.read_text(encoding="utf-8"), "\r\n" if b"\r\n" in path.read_bytes() else "\n"
    after = replace_values(before, result.overrides)
    try:
        is_applied = Params.model_validate(parse_yaml(after)) == with_overrides(params, result.overrides)
    except ValueError:  # for example a trial from a version whose keys had other names
        is_applied = False
    if not is_applied:
        overrides = " ".join(override_arguments(result))
        raise UserError(f"params.yaml: trial {result.number} does not fit the other values; edit by hand: {overrides}")
    with atomic_write(path) as temporary:
        temporary.write_text(after, encoding="utf-8", newline=newline)
    return "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), "before", "params.yaml"))
