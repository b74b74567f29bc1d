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
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from cifar_resnet.errors import UserError
from cifar_resnet.params.sections import TrackingParams
from cifar_resnet.tracking.run import NullRun, Run, connection_error
from cifar_resnet.versioning import provenance

EXPERIMENT = "cifar10-resnet"
ORIGINAL_RUN_TAG = "original_run"  # tag: the id of the run where it trained
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
                    _enable_wal(urlsplit(uri).path[1:])
    except Exception as error:
        raise UserError(f"{connection_error(uri, error)}; start it or unset MLFLOW_TRACKING_URI") from None
    return client


def _create(client: MlflowClient, artifacts: str | None) -> None:
    """Under a lock where the database is a file: its schema must be made once, not by four processes at a time."""
    try:
        client.create_experiment(EXPERIMENT, artifact_location=artifacts)
    except MlflowException:  # another process was faster
        if client.get_experiment_by_name(EXPERIMENT) is None:
            raise


def _enable_wal(database: str) -> None:
    """Write-ahead logging, which the database remembers: a writer no longer locks out `mlflow ui` and other writers."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("pragma journal_mode=wal")


@contextmanager
def training_run(
    root: Path, name: str, folder: Path, params: TrackingParams, *, is_active: Callable[[Path], bool]
) -> Iterator[Run]:
    """A run that ends as FINISHED, as KILLED if interrupted, otherwise as FAILED. An unfinished run of the same
    training is continued.

    Args:
        folder: where this training keeps its state; the run has it as a tag.
        is_active: whether a process uses such a folder. Runs that a kill left RUNNING are set to KILLED.
    """
    run = _training_run(root, name, folder, is_active) if params.enabled else NullRun()
    if params.system_metrics:
        run.enable_system_metrics()
    try:
        yield run
    except BaseException as error:
        run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    run.end("FINISHED")


def _training_run(root: Path, name: str, folder: Path, is_active: Callable[[Path], bool]) -> Run:
    client = connect(root)
    location = f"{platform.node()}:{folder.resolve()}"
    with require_mlflow(client):
        run_id = _unfinished_run(client, location, is_active)
        if run_id is None:
            run_id = create_run(client, name, provenance.provenance_tags(root) | {"scratch": location})
        client.update_run(run_id, status="RUNNING")
        return Run(client, run_id)


def get_run(root: Path, run_id: str) -> Run:
    """The run that trained the model, or a new one where this database has none of that id: DVC may have restored
    the model from a cache that was filled with another database."""
    client = connect(root)
    with require_mlflow(client):
        found = find_run(client, run_id)
        if found is None:
            print(f"MLflow has no run {run_id}, which trained this model: a new run takes its results")
            found = create_run(client, "restored", provenance.provenance_tags(root) | {ORIGINAL_RUN_TAG: run_id})
            client.set_terminated(found, "FINISHED")
        return Run(client, found)


def get_run_or_null(root: Path, run_id: str, params: TrackingParams) -> Run:
    """As `run_of`, but for what lies in files already: where MLflow cannot be used, that is said, and no error."""
    if not params.enabled:
        return NullRun(run_id)
    try:
        return get_run(root, run_id)
    except UserError as error:
        print(f"{error}; `make mlflow-rebuild` then delivers these results")
        return NullRun(run_id)


def find_run(client: MlflowClient, run_id: str) -> str | None:
    """The id here of the run that had `run_id` where it trained; one that was deleted comes back."""
    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        rebuilt = client.search_runs([experiment_id(client)], f"tags.{ORIGINAL_RUN_TAG} = '{run_id}'", max_results=1)
        return str(rebuilt[0].info.run_id) if rebuilt else None
    if found.info.lifecycle_stage == "deleted":
        client.restore_run(run_id)
    return run_id


@contextmanager
def require_mlflow(client: MlflowClient) -> Iterator[None]:
    """For a block that cannot do without MLflow.

    Raises:
        UserError: if MLflow breaks down meanwhile.
    """
    try:
        yield
    except (MlflowException, OSError) as error:
        raise UserError(
            f"{connection_error(client.tracking_uri, error)}; mend that and run the same command again"
        ) from None


def _unfinished_run(client: MlflowClient, location: str, is_active: Callable[[Path], bool]) -> str | None:
    """The newest unfinished run with this location; stale runs of the same project are closed on the way."""
    siblings = location.rsplit("/", 1)[0]
    unfinished = [
        run
        for run in client.search_runs([experiment_id(client)], "attributes.status != 'FINISHED'", max_results=1000)
        if run.data.tags.get("scratch", "").startswith(f"{siblings}/")  # LIKE in a filter has no escape for ' % _
    ]
    for run in unfinished:
        if run.info.status == "RUNNING" and not is_active(Path(run.data.tags["scratch"].split(":", 1)[1])):
            client.set_terminated(run.info.run_id, "KILLED")
    return next((str(run.info.run_id) for run in unfinished if run.data.tags["scratch"] == location), None)


def create_run(client: MlflowClient, name: str, tags: dict[str, str], start_time: int | None = None) -> str:
    """A new run's id; `start_time` is in milliseconds since 1970, now by default."""
    run = client.create_run(experiment_id(client), run_name=name, tags=tags, start_time=start_time)
    return str(run.info.run_id)


def experiment_id(client: MlflowClient) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return str(experiment.experiment_id)


def create_search_run(root: Path, name: str, values: dict[str, Any]) -> str:
    """The id of a new run that the trials of a search are nested under."""
    client = connect(root)
    run = Run(client, create_run(client, name, provenance.provenance_tags(root)))
    run.log_params(values)
    return run.id


def create_trial_run(root: Path, name: str, parent: str, tags: dict[str, Any]) -> Run:
    """A new run that MLflow shows below `parent`; `end` ends it."""
    client = connect(root)
    run = Run(client, create_run(client, name, provenance.provenance_tags(root) | {"mlflow.parentRunId": parent}))
    run.set_tags(tags)
    return run


def end_run(root: Path, run_id: str, status: str, *, only_from: Collection[str] = ()) -> None:
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


LOCK_SECONDS = 600.0


@contextmanager
def registry_lock(client: MlflowClient, root: Path) -> Iterator[None]:
    """Let one process at a time register or move the alias.

    The lock lies beside a local database, and so holds for every folder that uses it. With a server it holds for this
    project's folder alone: elsewhere the last to write has the alias, each writer reads again what it wrote, and
    all changes are in the history.

    Raises:
        UserError: if another process keeps the lock for LOCK_SECONDS.
    """
    address = urlsplit(client.tracking_uri)
    home = Path(os.environ.get("DVC_ROOT", root)).resolve()
    database = Path(address.path[1:]) if address.scheme == "sqlite" else home / "mlflow.db"
    path = Path(f"{database}.lock")
    try:
        with FileLock(path, timeout=LOCK_SECONDS):
            yield
    except Timeout:
        raise UserError(f"{path}: another process has been registering for {LOCK_SECONDS:.0f} s; end it") from None
