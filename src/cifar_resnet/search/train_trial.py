"""Training of one trial: on a part of the training images, validated on another part."""

import time
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from cifar_resnet.data import dataset, split
from cifar_resnet.data.dataset import Images
from cifar_resnet.device import select_device, select_dtype
from cifar_resnet.errors import UserError
from cifar_resnet.files import read_json
from cifar_resnet.params.search_schema import SearchParams
from cifar_resnet.search.reporter import ProgressReporter
from cifar_resnet.search.study import Study
from cifar_resnet.search.trial import RUN_STATUS, SearchTrial
from cifar_resnet.tracking.run import NullRun, Run
from cifar_resnet.tracking.search_runs import create_trial_run_or_null
from cifar_resnet.training.distributed import World
from cifar_resnet.training.history import EpochRecord
from cifar_resnet.training.loader import BatchLoader
from cifar_resnet.training.loop import fit, init_train_state

PREPARED = "data/prepared"


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
