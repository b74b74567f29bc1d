"""MLflow as the window on DVC's files: one experiment, one run for each execution of train."""

import logging
import os
import platform
import sqlite3
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from cifar_resnet import lineage
from cifar_resnet.errors import UserError
from cifar_resnet.params import TrackingParams
from cifar_resnet.runs import Run, Untracked, unusable

EXPERIMENT = "cifar10-resnet"
ORIGINAL = "original_run"  # tag: the id of the run where it trained
BOUNDS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}  # seconds; MLflow's: 7, 120


def connect(root: Path) -> MlflowClient:
    """A client of MLFLOW_TRACKING_URI, or of mlflow.db at the project's root: under `dvc exp run --temp` too, where
    the working directory is a throw-away copy and DVC_ROOT names the project.

    Raises:
        UserError: if the database or server cannot be used.
    """
    home = Path(os.environ.get("DVC_ROOT", root)).resolve()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it tells of every retry
    for key, value in BOUNDS.items():
        os.environ.setdefault(key, value)
    local = urlsplit(uri).scheme == "sqlite"
    try:
        with FileLock(f"{home / 'mlflow.db'}.new") if local else nullcontext():
            client = MlflowClient()
            if client.get_experiment_by_name(EXPERIMENT) is None:
                _create(client, (home / "mlartifacts").as_uri() if local else None)
                if local:
                    _let_readers_in(urlsplit(uri).path[1:])
    except Exception as error:
        raise UserError(f"{unusable(uri, error)}; start it or unset MLFLOW_TRACKING_URI") from None
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
def training_run(
    root: Path, name: str, scratch: Path, params: TrackingParams, *, alive: Callable[[Path], bool]
) -> Iterator[Run]:
    """A run that ends FINISHED, KILLED if interrupted, or else FAILED; if one broke off in `scratch`, it goes on.

    Args:
        scratch: the folder of this training's state; its run carries it as a tag.
        alive: whether a process works in such a folder. Runs that a kill left RUNNING without one become KILLED.
    """
    run = _training_run(root, name, scratch, alive) if params.enabled else Untracked()
    if params.system_metrics:
        run.watch_machine()
    try:
        yield run
    except BaseException as error:
        run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    run.end("FINISHED")


def _training_run(root: Path, name: str, scratch: Path, alive: Callable[[Path], bool]) -> Run:
    client = connect(root)
    place = f"{platform.node()}:{scratch.resolve()}"
    with needed(client):
        run_id = _unfinished(client, place, alive) or create(client, name, lineage.origin(root) | {"scratch": place})
        client.update_run(run_id, status="RUNNING")
        return Run(client, run_id)


def run_of(root: Path, run_id: str) -> Run:
    """The run that trained the model, or a new one where this database has none of that id: DVC may have restored
    the model from a cache that was filled with another database."""
    client = connect(root)
    with needed(client):
        found = find(client, run_id)
        if found is None:
            print(f"MLflow has no run {run_id}, which trained this model: a new run takes its results")
            found = create(client, "restored", lineage.origin(root) | {ORIGINAL: run_id})
            client.set_terminated(found, "FINISHED")
        return Run(client, found)


def view_of(root: Path, run_id: str, params: TrackingParams) -> Run:
    """As `run_of`, but for what lies in files already: where MLflow cannot be used, that is said, and no error."""
    if not params.enabled:
        return Untracked(run_id)
    try:
        return run_of(root, run_id)
    except UserError as error:
        print(f"{error}; `make mlflow-rebuild` then delivers these results")
        return Untracked(run_id)


def find(client: MlflowClient, run_id: str) -> str | None:
    """The id here of the run that had `run_id` where it trained; one that was deleted comes back."""
    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        rebuilt = client.search_runs([experiment_id(client)], f"tags.{ORIGINAL} = '{run_id}'", max_results=1)
        return str(rebuilt[0].info.run_id) if rebuilt else None
    if found.info.lifecycle_stage == "deleted":
        client.restore_run(run_id)
    return run_id


@contextmanager
def needed(client: MlflowClient) -> Iterator[None]:
    """For a block that cannot do without MLflow.

    Raises:
        UserError: if MLflow breaks down meanwhile.
    """
    try:
        yield
    except (MlflowException, OSError) as error:
        raise UserError(f"{unusable(client.tracking_uri, error)}; mend that and run the same command again") from None


def _unfinished(client: MlflowClient, place: str, alive: Callable[[Path], bool]) -> str | None:
    """The last run that broke off at `place`; on the way, stale runs of its siblings are closed."""
    siblings = place.rsplit("/", 1)[0]
    found = [
        run
        for run in client.search_runs([experiment_id(client)], "attributes.status != 'FINISHED'", max_results=1000)
        if run.data.tags.get("scratch", "").startswith(f"{siblings}/")  # LIKE in a filter has no escape for ' % _
    ]
    for run in found:
        if run.info.status == "RUNNING" and not alive(Path(run.data.tags["scratch"].split(":", 1)[1])):
            client.set_terminated(run.info.run_id, "KILLED")
    return next((str(run.info.run_id) for run in found if run.data.tags["scratch"] == place), None)


def create(client: MlflowClient, name: str, tags: dict[str, str], start_time: int | None = None) -> str:
    """A new run's id; `start_time` is in milliseconds since 1970, now by default."""
    run = client.create_run(experiment_id(client), run_name=name, tags=tags, start_time=start_time)
    return str(run.info.run_id)


def experiment_id(client: MlflowClient) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return str(experiment.experiment_id)


def search_run(root: Path, name: str, values: dict[str, Any]) -> str:
    """The id of a new run that the trials of a search are nested under."""
    client = connect(root)
    run = Run(client, create(client, name, lineage.origin(root)))
    run.params(values)
    return run.id


def nested_run(root: Path, name: str, parent: str, tags: dict[str, Any]) -> Run:
    """A new run that MLflow shows below `parent`; `end` ends it."""
    client = connect(root)
    run = Run(client, create(client, name, lineage.origin(root) | {"mlflow.parentRunId": parent}))
    run.tags(tags)
    return run


def end(root: Path, run_id: str, status: str, *, only_from: Collection[str] = ()) -> None:
    """Set the status FINISHED, FAILED, KILLED or RUNNING of a run, unless it was deleted from this database or has a
    status that is not among `only_from`, if there are any."""
    client = connect(root)
    try:
        if only_from and client.get_run(run_id).info.status not in only_from:
            return
        if status == "RUNNING":
            client.update_run(run_id, status=status)
        else:
            client.set_terminated(run_id, status)
    except MlflowException as error:
        print(f"MLflow has no run {run_id} of this search: {error}")
