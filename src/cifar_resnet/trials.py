"""The trials of a search: each trains as `train` does, on a share of the training images, and is measured on others."""

import gc
import math
import time
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from cifar_resnet import hardware, images, split, tracking, training
from cifar_resnet.batches import Batches
from cifar_resnet.distributed import World
from cifar_resnet.errors import UserError, wish_to_stop
from cifar_resnet.files import digest, read_json
from cifar_resnet.images import Images
from cifar_resnet.params import Params, SearchParams
from cifar_resnet.progress import Bar, bar
from cifar_resnet.records import EpochRecord
from cifar_resnet.runs import Run
from cifar_resnet.search import Result, Study, TakenOverError, Trial

PREPARED = "data/prepared"
PAUSE_SECONDS = 2.0  # between looks at the trials that others still train
STATUS = {"finished": "FINISHED", "pruned": "FINISHED", "failed": "FAILED", "killed": "KILLED"}  # MLflow's


class News:
    """Tells of every trial that ends, whoever trained it, and how far the search is."""

    def __init__(self, study: Study, watched: Bar, limit: int, deadline: float) -> None:
        self.study = study
        self.watched = watched
        self.limit = limit
        self.deadline = deadline
        self.told = {result.number for result in study.results() if result.ended}
        self.done = len(self.told)

    def look(self) -> None:
        results = self.study.results()
        self.done = sum(result.ended for result in results)
        for result in results:
            if result.ended and result.number not in self.told:
                self.told.add(result.number)
                self.watched.say(f"{line(result)}  |  {self.summary(results)}")

    def training(self, trial: Trial, share: float, note: str) -> None:
        self.watched.at(self.done + share, f"trial {trial.number}  {note}")

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


def search(root: Path, values: Params, *, limit: int, minutes: float) -> Study:
    """Train trials until `limit` are made, by whomever, or `minutes` have passed.

    Raises:
        KeyboardInterrupt: when asked to stop; the trial under way is put back in line.
    """
    hardware.keep_memory()
    data = shared(root, values.search)
    study = Study(root, values, digest(root / PREPARED / "train_images.npy"))
    with study.alone():
        if study.mlflow_run is None:
            name = f"search {values.search.study}"
            study.mlflow_run = tracking.search_run(root, name, {"search": values.search.model_dump()})
    tracking.end(root, str(study.mlflow_run), "RUNNING")
    deadline = time.monotonic() + 60 * minutes
    with wish_to_stop() as wish, bar("search", limit) as watched:
        news = News(study, watched, limit, deadline)
        if news.done:
            watched.say(f"search: going on after {news.summary(study.results())}")
        try:
            while (trial := next_trial(root, study, news, wish)) is not None:
                try:
                    attempt(root, study, trial, data, news, wish)
                except TakenOverError:
                    watched.say(f"trial {trial.number} was given to another worker, as this one was silent too long")
                gc.collect()
                news.look()
            news.look()  # others may have ended the last ones
        finally:
            tracking.end(root, str(study.mlflow_run), status(study, limit))
    return study


def next_trial(root: Path, study: Study, news: News, wish: Event) -> Trial | None:
    """None when the work is done or time is up; while others train the last trials, one may fall to this worker."""
    closed: set[str] = set()
    while time.monotonic() < news.deadline:
        if wish.is_set():
            raise KeyboardInterrupt("the same command goes on")
        trial = study.claim(news.limit)
        results = study.results()
        for result in results:
            if result.outcome in {"killed", "failed"} and result.mlflow_run and result.mlflow_run not in closed:
                # a kill between the ends of run and trial leaves a finished run of a trial that is made again
                ended = ("RUNNING", "FINISHED") if result.outcome == "killed" else ("RUNNING",)
                tracking.end(root, result.mlflow_run, "KILLED", only_from=ended)
                closed.add(result.mlflow_run)
        if trial is not None or not any(result.outcome == "running" for result in results):
            return trial
        news.look()
        wish.wait(PAUSE_SECONDS)
    return None


def attempt(root: Path, study: Study, trial: Trial, data: tuple[Images, Images, Any], news: News, wish: Event) -> None:
    """Train one configuration and tell the study and MLflow what came of it.

    Raises:
        KeyboardInterrupt: after a step, once `wish` is set.
        TakenOverError: if another worker has the trial by now.
    """
    start, outcome, reason = time.monotonic(), "killed", ""
    run = tracking.nested_run(root, f"trial {trial.number}", str(study.mlflow_run), {"trial": trial.number})
    study.note(trial, "mlflow_run", run.id)
    try:
        run.params({"model": trial.values.model.model_dump(), "train": trial.values.train.model_dump()})
        run.metrics({"parameters": trial.parameters, "multiply_adds": trial.multiply_adds})
        outcome = train(study, trial, data, run, news, wish)
    except (UserError, MemoryError, RuntimeError) as error:  # torch's lack of memory is a RuntimeError
        outcome, reason = "failed", " ".join(str(error).split())[:300] or type(error).__name__
    finally:
        run.tags({"outcome": outcome} | ({"reason": reason} if reason else {}))
        run.end(STATUS[outcome])
        study.end(trial, outcome, seconds=time.monotonic() - start, reason=reason)


def train(study: Study, trial: Trial, data: tuple[Images, Images, Any], run: Run, news: News, wish: Event) -> str:
    """Finished or pruned."""
    (learned, measured, statistics), params = data, trial.values.train
    precision, _ = hardware.precision(params.precision, hardware.device())
    state = training.start(trial.values.model, params, learned, statistics, World())
    batches = Batches(learned, params, World())
    for record in training.fit(state, batches, measured, params=params, precision=precision):
        study.beat(trial)
        if wish.is_set():
            raise KeyboardInterrupt("the trial under way is put back in line, and the same command goes on")
        if not isinstance(record, EpochRecord):
            share = (record.epoch - 1 + record.step / record.steps) / params.epochs
            news.training(trial, share, record.line(params.epochs))
            continue
        run.epoch(record.metrics(), record.epoch)
        assert record.validation_accuracy is not None
        if study.report(trial, record.epoch, record.validation_accuracy):
            return "pruned"
        news.look()
    return "finished"


def shared(root: Path, params: SearchParams) -> tuple[Images, Images, Any]:
    """(images to train on, images to measure on, statistics): both from the part that `train` trains on.

    Raises:
        UserError: if there are too few.
    """
    found = images.read(root / PREPARED, "train")
    statistics = read_json(root / PREPARED / "statistics.json")
    classes = len(statistics["classes"])
    fewest = int(np.bincount(found.labels, minlength=classes).min())
    if params.train_per_class + params.validation_per_class > fewest:
        raise UserError(
            f"search.train_per_class and search.validation_per_class are {params.train_per_class} and "
            f"{params.validation_per_class}: together at most {fewest} allowed, a class's training images"
        )
    rest, measured = split.hold_out(found, per_class=params.validation_per_class, classes=classes, seed=params.seed)
    if params.train_per_class + params.validation_per_class == fewest:
        return rest, measured, statistics
    _, learned = split.hold_out(rest, per_class=params.train_per_class, classes=classes, seed=params.seed)
    return learned, measured, statistics


def status(study: Study, limit: int) -> str:
    """Of the search's run, when a worker leaves it."""
    results = study.results()
    if any(result.outcome == "running" for result in results):
        return "RUNNING"
    return "FINISHED" if sum(result.ended for result in results) >= limit else "KILLED"


def line(result: Result) -> str:
    """A trial, for a person who watches."""
    accuracy = "" if result.accuracy is None else f"  {result.accuracy:.2%} after {result.epochs} epochs"
    counts = f"{result.parameters or 0:,} parameters, {(result.multiply_adds or 0) / 1e6:.0f} M multiply-adds"
    seconds = f", {result.seconds:.0f} s" if result.seconds else ""
    return f"trial {result.number:>3}  {result.outcome:8}{accuracy}  {counts}{seconds}  {result.reason}".rstrip()
