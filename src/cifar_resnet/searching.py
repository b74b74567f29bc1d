"""The command `search`: run it, alone or with workers beside it, and show, queue or apply the best."""

import os
import signal
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cifar_resnet import figures, params, tracking, trials, winners
from cifar_resnet.errors import UserError
from cifar_resnet.files import whole
from cifar_resnet.params import Params
from cifar_resnet.runs import Run
from cifar_resnet.search import Result, Study

SCRATCH = "data/scratch"


def main(root: Path, chosen: Namespace) -> None:
    values = params.load(root / "params.yaml")
    if chosen.action == "run":
        limit, minutes = chosen.trials or values.search.trials, chosen.minutes or values.search.minutes
        with workers(root, chosen.workers, limit, minutes):
            trials.search(root, values, limit=limit, minutes=minutes)
    study = Study(root, values)
    results = study.results()
    if chosen.action == "run":
        log(root, study, results)
    found = winners.best(results)
    if chosen.output:
        write(chosen.output, study, results)
    if not found:
        ended = sum(result.ended for result in results)
        raise UserError(f"none of the {ended} trials of {values.search.study} is finished; `make search` goes on")
    act(root, values, chosen, found)


def act(root: Path, values: Params, chosen: Namespace, found: list[Result]) -> None:
    """Show, queue or apply of the finished trials, the best first."""
    if chosen.action == "queue":
        winners.queue(root, values.search.study, found[: chosen.top])
        print(f"search: {len(found[: chosen.top])} trainings are in the queue; `dvc queue start` runs them")
    elif chosen.action == "apply":
        wanted = found[0].number if chosen.trial is None else chosen.trial
        result = next((each for each in found if each.number == wanted), None)
        if result is None:
            raise UserError(
                f"--trial {wanted}: not a finished trial of {values.search.study}; `search best` lists them"
            )
        print(winners.apply(root, values, result) or "params.yaml: these are its values already", end="")
    else:
        print(winners.report(found, chosen.top))


@contextmanager
def workers(root: Path, count: int, limit: int, minutes: float) -> Iterator[None]:
    """Further processes that search too while the block runs, the cores shared among all; they end with it."""
    threads = max(1, torch.get_num_threads() // count)
    command = [sys.executable, "-m", "cifar_resnet", "search", "run", f"--trials={limit}", f"--minutes={minutes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    others = []
    for number in range(2, count + 1):
        (root / SCRATCH).mkdir(parents=True, exist_ok=True)
        with (root / SCRATCH / f"search-worker-{number}.log").open("w") as said:
            others.append(subprocess.Popen(command, cwd=root, env=environment, stdout=said, stderr=said))
    torch.set_num_threads(threads)
    try:
        yield
    except BaseException:
        for other in others:
            other.send_signal(signal.SIGINT)
        for other in others:
            other.wait()
        raise
    for number, other in enumerate(others, start=2):
        if other.wait():
            print(f"search: worker {number} broke off, see {SCRATCH}/search-worker-{number}.log", file=sys.stderr)


def log(root: Path, study: Study, results: list[Result]) -> None:
    """The table and the figures to the search's run in MLflow."""
    run = Run(tracking.connect(root), str(study.mlflow_run))
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), study, results)
        for path in sorted(Path(name).iterdir()):
            run.artifact(path, "search")
    if found := winners.best(results):
        run.metrics({"best_accuracy": float(found[0].accuracy or 0), "trials": sum(r.ended for r in results)})
    run.end()


def write(folder: Path, study: Study, results: list[Result]) -> None:
    winners.write_table(folder / "trials.csv", results)
    for name, figure in pictures(study, results).items():
        with whole(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=110, format="png")


def pictures(study: Study, results: list[Result]) -> dict[str, Any]:
    """Of the trials that measured something; a notice where there are too few."""
    measured = [each for each in results if each.ended and each.accuracy is not None]
    finished = [each for each in measured if each.outcome == "finished"]
    accuracy = [float(each.accuracy or 0) for each in finished]
    if len(set(accuracy)) < 2:
        return {"history": figures.notice("two finished trials that differ make a figure")}
    found = {
        "history": figures.search_history(
            [each.number for each in measured],
            [float(each.accuracy or 0) for each in measured],
            [each.outcome == "finished" for each in measured],
        ),
        "parallel_coordinates": figures.parallel_coordinates(columns(finished), accuracy),
        "importance": figures.importance(study.importance()),
    }
    for cost in ("parameters", "multiply_adds"):
        costs = [int(getattr(each, cost)) for each in finished]
        numbers = [each.number for each in finished]
        label = cost.replace("_", "-")
        found[f"accuracy_{cost}"] = figures.accuracy_cost(
            costs, accuracy, winners.front(costs, accuracy), numbers, label
        )
    return found


def columns(finished: list[Result]) -> dict[str, list[Any]]:
    """What the trials drew, by name, a list by layer with None where a trial has no such layer; only what varies."""
    rows = []
    for each in finished:
        channels = each.changes.get("model.channels", [])
        row: dict[str, Any] = {"layers": len(channels)} if channels else {}
        for name, value in each.changes.items():
            entries = enumerate(value) if isinstance(value, list) else [("", value)]
            row |= {f"{name}.{place}".removesuffix(".").split(".", 1)[1]: entry for place, entry in entries}
        rows.append(row)
    longest = max(rows, key=len)  # has the layers in order
    names = dict.fromkeys([*longest, *(name for row in rows for name in row)])
    found = {name: [row.get(name) for row in rows] for name in names}
    return {name: column for name, column in found.items() if len({*column} - {None}) > 1}
