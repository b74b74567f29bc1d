"""MLflow as the window on DVC's files: one experiment, one run for each execution of train."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import mlflow.data.meta_dataset
from mlflow import MlflowClient
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.time import get_current_time_millis

from cifar_resnet.errors import UserError

EXPERIMENT = "cifar10-resnet"


class Run:
    """A run in MLflow, written to by its id; nothing is kept in global state."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.id = run_id

    def params(self, values: dict[str, Any]) -> None:
        """Log params.yaml's sections flat: {"train": {"epochs": 1}} becomes train.epochs."""
        flat = {f"{section}.{key}": value for section, keys in values.items() for key, value in keys.items()}
        self.client.log_batch(self.id, params=[Param(key, str(value)) for key, value in flat.items()])

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
    try:
        client = MlflowClient()
        if client.get_experiment_by_name(EXPERIMENT) is None:
            local = urlsplit(uri).scheme == "sqlite"
            _create(client, (home / "mlartifacts").as_uri() if local else None)
    except Exception as error:
        address = urlsplit(uri)
        shown = address._replace(netloc=address.hostname or "").geturl()
        said = " ".join(str(error).replace(address.netloc or uri, address.hostname or uri).split())[:200]
        raise UserError(f"MLflow at {shown} cannot be used ({said}); start it or unset MLFLOW_TRACKING_URI") from None
    return client


def _create(client: MlflowClient, artifacts: str | None) -> None:
    try:
        client.create_experiment(EXPERIMENT, artifact_location=artifacts)
    except MlflowException:  # another process was faster
        if client.get_experiment_by_name(EXPERIMENT) is None:
            raise


@contextmanager
def training_run(root: Path, name: str) -> Iterator[Run]:
    """A new run that ends FINISHED, KILLED if interrupted, or else FAILED."""
    client = connect(root)
    run = Run(client, _new(client, root, name))
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


def _new(client: MlflowClient, root: Path, name: str) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    run = client.create_run(experiment.experiment_id, run_name=name, tags=origin(root))
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
