"""Training of one trial: on a part of the training images, validated on another part."""

import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from cifar_resnet.data import dataset
from cifar_resnet.data.dataset import Images
from cifar_resnet.device import select_device, select_dtype
from cifar_resnet.errors import UserError
from cifar_resnet.files import read_object
from cifar_resnet.params.file import Params
from cifar_resnet.params.search_schema import SearchParams
from cifar_resnet.search.reporter import ProgressReporter
from cifar_resnet.search.study import Study
from cifar_resnet.search.trial import RUN_STATUS, SearchTrial
from cifar_resnet.tracking.run import NullRun, Run
from cifar_resnet.tracking.search_runs import OUTCOME_TAG, create_trial_run_or_null
from cifar_resnet.training.distributed import World
from cifar_resnet.training.history import EpochRecord
from cifar_resnet.training.initial_weights import RANDOM, InitialWeights, load_initial_weights
from cifar_resnet.training.loader import BatchLoader
from cifar_resnet.training.loop import fit, init_train_state

PREPARED = "data/prepared"


@dataclass(frozen=True)
class SearchData:
    """What all trials train with: images from those of stage `train`, and the weights that `train.init` names.

    statistics: the content of statistics.json; initial: None for random weights.
    """

    train: Images
    validation: Images
    statistics: dict[str, Any]
    initial: InitialWeights | None


def load_search_data(root: Path, params: Params) -> SearchData:
    """
    Raises:
        UserError: if the data is not prepared, a class has too few images, or the search changes a network that starts
            from other weights.
    """
    searched = [name for name in params.search.space if name.startswith("model.")]
    if params.train.init != RANDOM and searched:
        raise UserError(
            f"params.yaml: train.init is {params.train.init}, but search.space changes the network "
            f"({', '.join(searched)}): set train.init to none, or search values of train only"
        )
    initial = load_initial_weights(root, params.train.init, params.model)
    statistics = read_object(root / PREPARED / "statistics.json", "channel_mean", "channel_std", "classes")
    statistics |= initial.channel_statistics if initial else {}
    train, validation = search_split(dataset.read_split(root / PREPARED, "train"), statistics, params.search)
    return SearchData(train, validation, statistics, initial)


def search_split(images: Images, statistics: dict[str, Any], params: SearchParams) -> tuple[Images, Images]:
    """(training images, validation images) of all trials.

    Raises:
        UserError: if a class has too few images.
    """
    num_classes = len(statistics["classes"])
    smallest_class = int(np.bincount(images.labels, minlength=num_classes).min())
    if params.train_per_class + params.validation_per_class > smallest_class:
        raise UserError(
            f"search.train_per_class and search.validation_per_class are {params.train_per_class} and "
            f"{params.validation_per_class}: together at most {smallest_class} allowed, a class's training images"
        )
    random, ends = np.random.default_rng(params.seed), np.cumsum([params.train_per_class, params.validation_per_class])
    of_classes = (random.permutation(np.flatnonzero(images.labels == label)) for label in range(num_classes))
    train, validation, _ = zip(*(np.split(rows, ends) for rows in of_classes), strict=True)
    return images.take(np.sort(np.concatenate(train))), images.take(np.sort(np.concatenate(validation)))


def run_trial(
    root: Path,
    study: Study,
    trial: SearchTrial,
    data: SearchData,
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
            trial.optuna_trial.set_user_attr("mlflow_run", run.id)
        run.log_params({"model": trial.params.model.model_dump(), "train": trial.params.train.model_dump()})
        run.log_metrics({"parameters": trial.parameters, "multiply_adds": trial.multiply_adds})
        outcome = train_trial(study, trial, data, run, reporter, stop_event)
    except (UserError, MemoryError, RuntimeError, ValueError) as error:  # the last two are torch's
        outcome, reason = "failed", " ".join(str(error).split())[:300] or type(error).__name__
    finally:
        run.set_tags({OUTCOME_TAG: outcome} | ({"reason": reason} if reason else {}))
        run.end(RUN_STATUS[outcome])
        study.tell(trial, outcome, seconds=time.monotonic() - start, reason=reason)


def train_trial(
    study: Study,
    trial: SearchTrial,
    data: SearchData,
    run: Run,
    reporter: ProgressReporter,
    stop_event: Event,
) -> str:
    """Train a trial and return its outcome, finished or pruned."""
    params = trial.params.train
    device = select_device(params.device)
    precision, _ = select_dtype(params.precision, device)
    world = World(device=device)
    state = init_train_state(trial.params.model, params, data.train, data.statistics, world, initial=data.initial)
    loader = BatchLoader(data.train, params, world)
    for record in fit(state, loader, data.validation, params=params, precision=precision):
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
