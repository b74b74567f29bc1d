"""The trials of a search: each trains as `train` does, on a share of the training images, and is measured on others."""

import gc
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch

from cifar_resnet.data import dataset, split
from cifar_resnet.data.dataset import Images
from cifar_resnet.device import disable_malloc_trim, select_device, select_dtype
from cifar_resnet.errors import UserError, stop_on_signal
from cifar_resnet.files import file_hash, read_json
from cifar_resnet.params.file import Params
from cifar_resnet.params.search_section import SearchParams
from cifar_resnet.progress import ProgressBar, progress_bar
from cifar_resnet.search.study import Result, Study, TakenOverError, Trial
from cifar_resnet.tracking.client import create_search_run, create_trial_run, end_run
from cifar_resnet.tracking.run import Run
from cifar_resnet.training.distributed import World
from cifar_resnet.training.history import EpochRecord
from cifar_resnet.training.loader import BatchLoader
from cifar_resnet.training.loop import fit, init_train_state

PREPARED = "data/prepared"
SCRATCH = "data/scratch"
PAUSE_SECONDS = 2.0  # between looks at the trials that others still train
STATUS = {"finished": "FINISHED", "pruned": "FINISHED", "failed": "FAILED", "killed": "KILLED"}  # MLflow's


class ProgressReporter:
    """Tells of every trial that ends, whoever trained it, and how far the search is."""

    def __init__(self, study: Study, bar: ProgressBar, limit: int, deadline: float) -> None:
        self.study = study
        self.bar = bar
        self.limit = limit
        self.deadline = deadline
        self.reported = {result.number for result in study.results() if result.ended}
        self.done = len(self.reported)

    def refresh(self) -> None:
        results = self.study.results()
        self.done = sum(result.ended for result in results)
        for result in results:
            if result.ended and result.number not in self.reported:
                self.reported.add(result.number)
                self.bar.print(f"{trial_line(result)}  |  {self.summary(results)}")

    def show_training(self, trial: Trial, share: float, note: str) -> None:
        self.bar.update(self.done + share, f"trial {trial.number}  {note}")

    def summary(self, results: list[Result]) -> str:
        ended = [result for result in results if result.ended]
        pruned = sum(result.outcome == "pruned" for result in ended)
        best = max((r for r in ended if r.outcome == "finished"), key=lambda r: r.accuracy or 0, default=None)
        shown = f"best {best.accuracy:.2%} (trial {best.number})" if best else "none finished"
        return f"{len(ended)}/{self.limit}, {pruned} pruned, {shown}, ETA {self.minutes_left(results):.0f} min"

    def minutes_left(self, results: list[Result]) -> float:
        """Until the last trial ends, as long as the trials so far took on average."""
        took = [result.seconds for result in results if result.seconds is not None]
        workers = max(1, sum(result.outcome == "running" for result in results))
        rounds = math.ceil(max(0, self.limit - sum(result.ended for result in results)) / workers)
        return min(rounds * float(np.mean(took or [0])), max(0.0, self.deadline - time.monotonic())) / 60


def run_search(root: Path, values: Params, *, limit: int, minutes: float) -> Study:
    """Train trials until `limit` are made, by whomever, or `minutes` have passed.

    Raises:
        KeyboardInterrupt: when asked to stop; the trial under way is put back in line.
    """
    disable_malloc_trim()
    data = load_search_data(root, values.search)
    study = Study(root, values, file_hash(root / PREPARED / "train_images.npy"))
    with study.lock():
        if study.mlflow_run is None:
            name = f"search {values.search.study}"
            study.mlflow_run = create_search_run(root, name, {"search": values.search.model_dump()})
    end_run(root, str(study.mlflow_run), "RUNNING")
    deadline = time.monotonic() + 60 * minutes
    with stop_on_signal() as wish, progress_bar("search", limit) as bar:
        news = ProgressReporter(study, bar, limit, deadline)
        if news.done:
            bar.print(f"search: going on after {news.summary(study.results())}")
        try:
            while (trial := next_trial(root, study, news, wish)) is not None:
                try:
                    run_trial(root, study, trial, data, news, wish)
                except TakenOverError:
                    bar.print(f"trial {trial.number} was given to another worker, as this one was silent too long")
                gc.collect()
                news.refresh()
            news.refresh()  # others may have ended the last ones
        finally:
            end_run(root, str(study.mlflow_run), search_status(study, limit))
    return study


def next_trial(root: Path, study: Study, news: ProgressReporter, wish: Event) -> Trial | None:
    """None when the work is done or time is up; while others train the last trials, one may fall to this worker."""
    closed: set[str] = set()
    while time.monotonic() < news.deadline:
        if wish.is_set():
            raise KeyboardInterrupt("the same command goes on")
        trial = study.ask(news.limit)
        results = study.results()
        for result in results:
            if result.outcome in {"killed", "failed"} and result.mlflow_run and result.mlflow_run not in closed:
                # a kill between the ends of run and trial leaves a finished run of a trial that is made again
                ended = ("RUNNING", "FINISHED") if result.outcome == "killed" else ("RUNNING",)
                end_run(root, result.mlflow_run, "KILLED", only_from=ended)
                closed.add(result.mlflow_run)
        if trial is not None or not any(result.outcome == "running" for result in results):
            return trial
        news.refresh()
        wish.wait(PAUSE_SECONDS)
    return None


def run_trial(
    root: Path, study: Study, trial: Trial, data: tuple[Images, Images, Any], news: ProgressReporter, wish: Event
) -> None:
    """Train one configuration and tell the study and MLflow what came of it.

    Raises:
        KeyboardInterrupt: after a step, once `wish` is set.
        TakenOverError: if another worker has the trial by now.
    """
    start, outcome, reason = time.monotonic(), "killed", ""
    run = create_trial_run(root, f"trial {trial.number}", str(study.mlflow_run), {"trial": trial.number})
    study.set_attribute(trial, "mlflow_run", run.id)
    try:
        run.log_params({"model": trial.values.model.model_dump(), "train": trial.values.train.model_dump()})
        run.log_metrics({"parameters": trial.parameters, "multiply_adds": trial.multiply_adds})
        outcome = train_trial(study, trial, data, run, news, wish)
    except (UserError, MemoryError, RuntimeError) as error:  # torch's lack of memory is a RuntimeError
        outcome, reason = "failed", " ".join(str(error).split())[:300] or type(error).__name__
    finally:
        run.set_tags({"outcome": outcome} | ({"reason": reason} if reason else {}))
        run.end(STATUS[outcome])
        study.tell(trial, outcome, seconds=time.monotonic() - start, reason=reason)


def train_trial(
    study: Study, trial: Trial, data: tuple[Images, Images, Any], run: Run, news: ProgressReporter, wish: Event
) -> str:
    """Finished or pruned."""
    (learned, measured, statistics), params = data, trial.values.train
    target = select_device(params.device)
    precision, _ = select_dtype(params.precision, target)
    state = init_train_state(trial.values.model, params, learned, statistics, target=target, world=World())
    loader = BatchLoader(learned, params, World())
    for record in fit(state, loader, measured, params=params, precision=precision):
        study.heartbeat(trial)
        if wish.is_set():
            raise KeyboardInterrupt("the trial under way is put back in line, and the same command goes on")
        if not isinstance(record, EpochRecord):
            share = (record.epoch - 1 + record.step / record.steps) / params.epochs
            news.show_training(trial, share, record.line(params.epochs))
            continue
        run.log_epoch(record.metrics(), record.epoch)
        assert record.validation_accuracy is not None
        if study.report(trial, record.epoch, record.validation_accuracy):
            return "pruned"
        news.refresh()
    return "finished"


def load_search_data(root: Path, params: SearchParams) -> tuple[Images, Images, Any]:
    """(images to train on, images to measure on, statistics): both from the part that `train` trains on.

    Raises:
        UserError: if there are too few.
    """
    found = dataset.read_split(root / PREPARED, "train")
    statistics = read_json(root / PREPARED / "statistics.json")
    num_classes = len(statistics["classes"])
    fewest = int(np.bincount(found.labels, minlength=num_classes).min())
    if params.train_per_class + params.validation_per_class > fewest:
        raise UserError(
            f"search.train_per_class and search.validation_per_class are {params.train_per_class} and "
            f"{params.validation_per_class}: together at most {fewest} allowed, a class's training images"
        )
    rest, measured = split.train_validation_split(
        found, per_class=params.validation_per_class, num_classes=num_classes, seed=params.seed
    )
    if params.train_per_class + params.validation_per_class == fewest:
        return rest, measured, statistics
    _, learned = split.train_validation_split(
        rest, per_class=params.train_per_class, num_classes=num_classes, seed=params.seed
    )
    return learned, measured, statistics


def search_status(study: Study, limit: int) -> str:
    """Of the search's run, when a worker leaves it."""
    results = study.results()
    if any(result.outcome == "running" for result in results):
        return "RUNNING"
    return "FINISHED" if sum(result.ended for result in results) >= limit else "KILLED"


def trial_line(result: Result) -> str:
    """A trial, for a person who watches."""
    accuracy = "" if result.accuracy is None else f"  {result.accuracy:.2%} after {result.epochs} epochs"
    counts = f"{result.parameters or 0:,} parameters, {(result.multiply_adds or 0) / 1e6:.0f} M multiply-adds"
    seconds = f", {result.seconds:.0f} s" if result.seconds else ""
    return f"trial {result.number:>3}  {result.outcome:8}{accuracy}  {counts}{seconds}  {result.reason}".rstrip()


@contextmanager
def worker_processes(root: Path, count: int, limit: int, minutes: float) -> Iterator[None]:
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
