"""Worker of a search: trains trials on a part of the training images and validates them on another part."""

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
from cifar_resnet.params.search_schema import SearchParams
from cifar_resnet.progress import ProgressBar, progress_bar
from cifar_resnet.search.results import rank_trials
from cifar_resnet.search.study import Study, TakenOverError
from cifar_resnet.search.trial import RUN_STATUS, SearchTrial, TrialResult
from cifar_resnet.tracking.run import NullRun, Run
from cifar_resnet.tracking.search_runs import create_trial_run_or_null, end_run, find_or_create_search_run
from cifar_resnet.training.distributed import World
from cifar_resnet.training.history import EpochRecord
from cifar_resnet.training.loader import BatchLoader
from cifar_resnet.training.loop import fit, init_train_state

PREPARED = "data/prepared"
SCRATCH = "data/scratch"
POLL_SECONDS = 2.0  # between two checks of the trials that other workers train


class ProgressReporter:
    """Prints every trial that ends, of all workers, with the progress of the search."""

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

    def show_training(self, trial: SearchTrial, fraction: float, note: str) -> None:
        self.bar.update(self.done + fraction, f"trial {trial.number}  {note}")

    def summary(self, results: list[TrialResult]) -> str:
        ended = [result for result in results if result.ended]
        pruned = sum(result.outcome == "pruned" for result in ended)
        ranked = rank_trials(results)
        best = f"best {ranked[0].accuracy:.2%} (trial {ranked[0].number})" if ranked else "none finished"
        return f"{len(ended)}/{self.limit}, {pruned} pruned, {best}, ETA {self.minutes_left(results):.0f} min"

    def minutes_left(self, results: list[TrialResult]) -> float:
        """Minutes until the last trial ends, estimated from the mean duration of a trial so far."""
        seconds = [result.seconds for result in results if result.seconds is not None]
        workers = max(1, sum(result.outcome == "running" for result in results))
        rounds = math.ceil(max(0, self.limit - sum(result.ended for result in results)) / workers)
        return min(rounds * float(np.mean(seconds or [0])), max(0.0, self.deadline - time.monotonic())) / 60


def run_search(root: Path, params: Params, *, limit: int, minutes: float) -> Study:
    """Train trials until all workers together have `limit` trials or `minutes` have passed.

    Raises:
        KeyboardInterrupt: after SIGINT or SIGTERM; the running trial is queued again.
    """
    disable_malloc_trim()
    data = load_search_data(root, params.search)
    study = Study(root, params, file_hash(root / PREPARED / "train_images.npy"))
    search_run = open_search_run(root, study)
    if search_run:
        end_run(root, search_run, "RUNNING")
    deadline = time.monotonic() + 60 * minutes
    with stop_on_signal() as stop_event, progress_bar("search", limit) as bar:
        reporter = ProgressReporter(study, bar, limit, deadline)
        if reporter.done:
            bar.print(f"search: continues after {reporter.summary(study.results())}")
        try:
            while (trial := next_trial(root, study, reporter, stop_event)) is not None:
                try:
                    run_trial(root, study, trial, data, reporter, stop_event, search_run)
                except TakenOverError:
                    bar.print(f"trial {trial.number} was given to another worker: this worker's heartbeat was too late")
                gc.collect()
                reporter.refresh()
            reporter.refresh()  # the last trials may be other workers'
        finally:
            if search_run:
                end_run(root, search_run, search_status(study, limit))
    return study


def open_search_run(root: Path, study: Study) -> str | None:
    """The id of the search's MLflow run, a new one if there is none; None if tracking is disabled.

    Raises:
        UserError: if MLflow cannot be used.
    """
    search = study.params.search
    if not study.params.tracking.enabled:
        return None
    with study.lock():
        name, values = f"search {search.study}", {"search": search.model_dump()}
        run_id = find_or_create_search_run(root, study.mlflow_run, name, values)
        if run_id != study.mlflow_run:
            study.mlflow_run = run_id
    return run_id


def next_trial(root: Path, study: Study, reporter: ProgressReporter, stop_event: Event) -> SearchTrial | None:
    """The next trial, None if all trials have ended or the time is over.

    Waits while other workers train the last trials, because a trial of a worker that dies is queued again.
    """
    closed, is_tracked = set[str](), study.params.tracking.enabled
    while time.monotonic() < reporter.deadline:
        if stop_event.is_set():
            raise KeyboardInterrupt("run the same command to continue")
        trial = study.ask(reporter.limit)
        results = study.results()
        for result in results:
            if not is_tracked or result.mlflow_run is None or result.mlflow_run in closed:
                continue
            if result.outcome in {"killed", "failed"}:
                # a worker killed between run.end and study.tell leaves a finished run of a trial that is queued again
                statuses = ("RUNNING", "FINISHED") if result.outcome == "killed" else ("RUNNING",)
                end_run(root, result.mlflow_run, "KILLED", only_from=statuses)
                closed.add(result.mlflow_run)
        if trial is not None or not any(result.outcome == "running" for result in results):
            return trial
        reporter.refresh()
        stop_event.wait(POLL_SECONDS)
    return None


def run_trial(
    root: Path,
    study: Study,
    trial: SearchTrial,
    data: tuple[Images, Images, Any],
    reporter: ProgressReporter,
    stop_event: Event,
    search_run: str | None,
) -> None:
    """Train a trial and store its outcome in the study and in MLflow.

    Args:
        search_run: id of the search's MLflow run; None without MLflow.

    Raises:
        KeyboardInterrupt: after a step, once `stop_event` is set.
        TakenOverError: if another worker has the trial.
    """
    start, outcome, reason = time.monotonic(), "killed", ""
    run: Run = NullRun()
    try:
        run = create_trial_run_or_null(root, trial.number, search_run)
        if not isinstance(run, NullRun):
            study.set_user_attr(trial, "mlflow_run", run.id)
        run.log_params({"model": trial.params.model.model_dump(), "train": trial.params.train.model_dump()})
        run.log_metrics({"parameters": trial.parameters, "multiply_adds": trial.multiply_adds})
        outcome = train_trial(study, trial, data, run, reporter, stop_event)
    except (UserError, MemoryError, RuntimeError) as error:  # torch reports missing memory as a RuntimeError
        outcome, reason = "failed", " ".join(str(error).split())[:300] or type(error).__name__
    finally:
        run.set_tags({"outcome": outcome} | ({"reason": reason} if reason else {}))
        run.end(RUN_STATUS[outcome])
        study.tell(trial, outcome, seconds=time.monotonic() - start, reason=reason)


def train_trial(
    study: Study,
    trial: SearchTrial,
    data: tuple[Images, Images, Any],
    run: Run,
    reporter: ProgressReporter,
    stop_event: Event,
) -> str:
    """Train a trial and return its outcome, finished or pruned."""
    (train_images, validation_images, statistics), params = data, trial.params.train
    device = select_device(params.device)
    precision, _ = select_dtype(params.precision, device)
    state = init_train_state(trial.params.model, params, train_images, statistics, world=World(device=device))
    loader = BatchLoader(train_images, params, World())
    for record in fit(state, loader, validation_images, params=params, precision=precision):
        study.heartbeat(trial)
        if stop_event.is_set():
            raise KeyboardInterrupt("the running trial is queued again; run the same command to continue")
        if not isinstance(record, EpochRecord):
            fraction = (record.epoch - 1 + record.step / record.steps) / params.epochs
            reporter.show_training(trial, fraction, record.line(params.epochs))
            continue
        run.log_epoch(record.metrics(), record.epoch)
        assert record.validation_accuracy is not None
        if study.report(trial, record.epoch, record.validation_accuracy):
            return "pruned"
        reporter.refresh()
    return "finished"


def load_search_data(root: Path, params: SearchParams) -> tuple[Images, Images, Any]:
    """(training images, validation images, statistics), both parts from the images that stage `train` trains on.

    Raises:
        UserError: if a class has too few images.
    """
    images = dataset.read_split(root / PREPARED, "train")
    statistics = read_json(root / PREPARED / "statistics.json")
    num_classes = len(statistics["classes"])
    smallest_class = int(np.bincount(images.labels, minlength=num_classes).min())
    if params.train_per_class + params.validation_per_class > smallest_class:
        raise UserError(
            f"search.train_per_class and search.validation_per_class are {params.train_per_class} and "
            f"{params.validation_per_class}: together at most {smallest_class} allowed, a class's training images"
        )
    rest, validation_images = split.train_validation_split(
        images, per_class=params.validation_per_class, num_classes=num_classes, seed=params.seed
    )
    if params.train_per_class + params.validation_per_class == smallest_class:
        return rest, validation_images, statistics
    _, train_images = split.train_validation_split(
        rest, per_class=params.train_per_class, num_classes=num_classes, seed=params.seed
    )
    return train_images, validation_images, statistics


def search_status(study: Study, limit: int) -> str:
    """MLflow's status for the search's run when a worker leaves it."""
    results = study.results()
    if any(result.outcome == "running" for result in results):
        return "RUNNING"
    return "FINISHED" if sum(result.ended for result in results) >= limit else "KILLED"


def trial_line(result: TrialResult) -> str:
    """A trial in one line of text."""
    accuracy = "" if result.accuracy is None else f"  {result.accuracy:.2%} after {result.epochs} epochs"
    size = f"{result.parameters or 0:,} parameters, {(result.multiply_adds or 0) / 1e6:.0f} M multiply-adds"
    seconds = f", {result.seconds:.0f} s" if result.seconds else ""
    return f"trial {result.number:>3}  {result.outcome:8}{accuracy}  {size}{seconds}  {result.reason}".rstrip()


@contextmanager
def worker_processes(root: Path, count: int, limit: int, minutes: float) -> Iterator[None]:
    """Run `count` - 1 more worker processes while the block runs; all share the cores and end with the block."""
    threads = max(1, torch.get_num_threads() // count)
    command = [sys.executable, "-m", "cifar_resnet", "search", "run", f"--trials={limit}", f"--minutes={minutes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    processes = []
    for number in range(2, count + 1):
        (root / SCRATCH).mkdir(parents=True, exist_ok=True)
        with (root / SCRATCH / f"search-worker-{number}.log").open("w") as log:
            processes.append(subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log))
    torch.set_num_threads(threads)
    try:
        yield
    except BaseException:
        for process in processes:
            process.send_signal(signal.SIGINT)
        for process in processes:
            process.wait()
        raise
    for number, process in enumerate(processes, start=2):
        if process.wait():
            print(f"search: worker {number} failed, see {SCRATCH}/search-worker-{number}.log", file=sys.stderr)
