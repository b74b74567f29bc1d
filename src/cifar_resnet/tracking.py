"""MLflow as the window on DVC's files: one experiment, one run for each execution of train."""

import os
import platform
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import mlflow.data.meta_dataset
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

from cifar_resnet.errors import UserError

EXPERIMENT = "cifar10-resnet"
PER_EPOCH = "train_loss"


class Run:
    """A run in MLflow, written to by its id; nothing is kept in global state."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.id = run_id
        self.steps = {metric.step for metric in client.get_metric_history(run_id, PER_EPOCH)}

    def params(self, values: dict[str, Any]) -> None:
        """Log params.yaml's sections flat: {"train": {"epochs": 1}} becomes train.epochs."""
        flat = {f"{section}.{key}": value for section, keys in values.items() for key, value in keys.items()}
        self.client.log_batch(self.id, params=[Param(key, str(value)) for key, value in flat.items()])

    def epoch(self, values: dict[str, float], epoch: int) -> None:
        """Log an epoch's metrics, unless the run has them from before an interruption."""
        if epoch not in self.steps:
            self.metrics(values, step=epoch)

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        now = get_current_time_millis()
        self.client.log_batch(self.id, metrics=[Metric(key, value, now, step) for key, value in values.items()])

    def tags(self, values: dict[str, Any]) -> None:
        self.client.log_batch(self.id, tags=[RunTag(key, str(value)) for key, value in values.items()])

    def artifact(self, path: Path, folder: str | None = None) -> None:
        self.client.log_artifact(self.id, str(path), folder)

    def dataset(self, name: str, digest: str, address: str) -> None:
        data = mlflow.data.meta_dataset.MetaDataset(HTTPDatasetSource(address), name=name, digest=digest)
        used_for = InputTag("mlflow.data.context", "training")
        self.client.log_inputs(self.id, datasets=[DatasetInput(data._to_mlflow_entity(), [used_for])])


def connect(root: Path) -> MlflowClient:
    """A client of MLFLOW_TRACKING_URI, or of mlflow.db at the project's root: under `dvc exp run --temp` too, where
    the working directory is a throw-away copy and DVC_ROOT names the project.

    Raises:
        UserError: if the database or server cannot be used.
    """
    home = Path(os.environ.get("DVC_ROOT", root)).resolve()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    local = urlsplit(uri).scheme == "sqlite"
    try:
        with FileLock(f"{home / 'mlflow.db'}.new") if local else nullcontext():
            client = MlflowClient()
            if client.get_experiment_by_name(EXPERIMENT) is None:
                _create(client, (home / "mlartifacts").as_uri() if local else None)
                if local:
                    _let_readers_in(urlsplit(uri).path[1:])
    except Exception as error:
        address = urlsplit(uri)
        shown = address._replace(netloc=address.hostname or "").geturl()
        said = " ".join(str(error).replace(address.netloc or uri, address.hostname or uri).split())[:200]
        raise UserError(f"MLflow at {shown} cannot be used ({said}); start it or unset MLFLOW_TRACKING_URI") from None
    return client


def _create(client: MlflowClient, artifacts: str | None) -> None:
    """Under a lock where the database is a file: its schema must be made once, not by four processes at a time."""
    try:
        client.create_experiment(EXPERIMENT, artifact_location=artifacts)
    except MlflowException:  # another process was faster
        if client.get_experiment_by_name(EXPERIMENT) is None:
            raise


def _let_readers_in(database: str) -> None:
    """Write-ahead logging, which the database remembers: a writer no longer locks out `mlflow ui` and other writers."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("pragma journal_mode=wal")


@contextmanager
def training_run(root: Path, name: str, scratch: Path, *, alive: Callable[[Path], bool]) -> Iterator[Run]:
    """A run that ends FINISHED, KILLED if interrupted, or else FAILED; if one broke off in `scratch`, it goes on.

    Args:
        scratch: the folder of this training's state; its run carries it as a tag.
        alive: whether a process works in such a folder. Runs that a kill left RUNNING without one become KILLED.
    """
    client = connect(root)
    place = f"{platform.node()}:{scratch.resolve()}"
    run_id = _unfinished(client, place, alive) or _new(client, root, name, scratch=place)
    client.update_run(run_id, status="RUNNING")
    run = Run(client, run_id)
    try:
        yield run
    except BaseException as error:
        client.set_terminated(run.id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    client.set_terminated(run.id, "FINISHED")


def run_of(root: Path, run_id: str) -> Run:
    """The run that trained the model, or a new one where this database has none of that id: DVC may have restored
    the model from a cache that was filled with another database."""
    client = connect(root)
    try:
        client.get_run(run_id)
    except MlflowException:
        print(f"MLflow has no run {run_id}, which trained this model: a new run takes its results")
        run_id = _new(client, root, "restored")
        client.set_terminated(run_id, "FINISHED")
    return Run(client, run_id)


def _unfinished(client: MlflowClient, place: str, alive: Callable[[Path], bool]) -> str | None:
    """The last run that broke off at `place`; on the way, stale runs of its siblings are closed."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    siblings = place.rsplit("/", 1)[0]
    found = client.search_runs(
        [experiment.experiment_id],
        f"tags.scratch LIKE '{siblings}/%' AND attributes.status != 'FINISHED'",
        max_results=1000,
    )
    for run in found:
        if run.info.status == "RUNNING" and not alive(Path(run.data.tags["scratch"].split(":", 1)[1])):
            client.set_terminated(run.info.run_id, "KILLED")
    return next((str(run.info.run_id) for run in found if run.data.tags["scratch"] == place), None)


def _new(client: MlflowClient, root: Path, name: str, **tags: str) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    run = client.create_run(experiment.experiment_id, run_name=name, tags=origin(root) | tags)
    return str(run.info.run_id)


def origin(root: Path) -> dict[str, str]:
    """Where the code came from: git commit, whether it was changed since, DVC's experiment and baseline."""
    tags = {
        "git_commit": _git(root, "rev-parse", "HEAD"),
        "git_dirty": str(bool(_git(root, "status", "--porcelain", "--untracked-files=no"))).lower(),
        "dvc_experiment": os.environ.get("DVC_EXP_NAME", ""),
        "dvc_baseline": os.environ.get("DVC_EXP_BASELINE_REV", ""),
    }
    tags["mlflow.source.git.commit"] = tags["git_commit"]
    return {key: value for key, value in tags.items() if value}


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def search_run(root: Path, name: str, values: dict[str, Any]) -> str:
    """The id of a new run that the trials of a search are nested under."""
    client = connect(root)
    run = Run(client, _new(client, root, name))
    run.params(values)
    return run.id


def nested_run(root: Path, name: str, parent: str, tags: dict[str, Any]) -> Run:
    """A new run that MLflow shows below `parent`; `end` ends it."""
    client = connect(root)
    run = Run(client, _new(client, root, name, **{"mlflow.parentRunId": parent}))
    run.tags(tags)
    return run


def end(root: Path, run_id: str, status: str, *, only_running: bool = False) -> None:
    """Set the status FINISHED, FAILED, KILLED or RUNNING of a run, unless it was deleted from this database."""
    client = connect(root)
    try:
        if not only_running or client.get_run(run_id).info.status == "RUNNING":
            client.update_run(run_id, status="RUNNING") if status == "RUNNING" else client.set_terminated(
                run_id, status
            )
    except MlflowException as error:
        print(f"MLflow has no run {run_id} of this search: {error}")
