"""MLflow client: the project's experiment, and how its runs are created, continued and found."""

import os
import platform
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from cifar_resnet.errors import UserError
from cifar_resnet.params.schema import TrackingParams
from cifar_resnet.tracking.location import (
    STATE_FOLDER_TAG,
    artifact_folder,
    connection_error,
    is_database,
    local_database,
    move_artifact_paths,
    prepare_connection,
    project_home,
    tracking_uri,
    unusable_error,
)
from cifar_resnet.tracking.run import NullRun, Run
from cifar_resnet.tracking.view import EXPERIMENT_TAGS
from cifar_resnet.versioning import provenance

EXPERIMENT = "cifar10-resnet"
ORIGINAL_RUN_TAG = "original_run"  # run id in the database where the model was trained
MISSING_ERRORS = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
LOCK_SECONDS = 600.0
Found = TypeVar("Found")


def connect(root: Path) -> MlflowClient:
    """A client for `tracking_uri(root)`, where the experiment exists, with EXPERIMENT_TAGS.

    A deleted experiment is restored. In a local database, the paths of artifacts are those of this project.

    Raises:
        UserError: if the database or server cannot be used.
    """
    uri, home = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db", project_home(root)
    try:
        uri = tracking_uri(root)
        database = local_database(uri)
        if database is not None:
            database.parent.mkdir(parents=True, exist_ok=True)
        prepare_connection(uri)
        with FileLock(f"{database}.new") if database else nullcontext():
            client = MlflowClient()
            _prepare_experiment(client, home, uri)
    except Exception as error:
        raise unusable_error(uri, error) from None
    return client


def _prepare_experiment(client: MlflowClient, home: Path, uri: str) -> None:
    """Create the experiment, or restore and move it. A server decides itself where artifacts are."""
    experiment, database = client.get_experiment_by_name(EXPERIMENT), local_database(uri)
    if experiment is None:
        _create_experiment(client, artifact_folder(home).as_uri() if is_database(uri) else None)
        if database:
            _enable_wal(database)
        return
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
        print(f"MLflow: the deleted experiment {EXPERIMENT} is restored, with its runs")
    with suppress(MlflowException):  # the tags only change what a browser shows, and not every user may write them
        for key, value in EXPERIMENT_TAGS.items():
            if experiment.tags.get(key) != value:
                client.set_experiment_tag(experiment.experiment_id, key, value)
    if database and move_artifact_paths(database, home, experiment.artifact_location):
        print(f"MLflow: the project was moved or copied; artifacts now go to {artifact_folder(home)}")


def _create_experiment(client: MlflowClient, artifacts: str | None) -> None:
    """Create the experiment. A local database needs a lock, because only one process may create its schema."""
    try:
        client.create_experiment(EXPERIMENT, artifact_location=artifacts, tags=EXPERIMENT_TAGS)
    except MlflowException:  # another process was faster
        if client.get_experiment_by_name(EXPERIMENT) is None:
            raise


def _enable_wal(database: Path) -> None:
    """Turn on write-ahead logging, so that a writer does not lock out `mlflow ui` and other writers.

    The setting is stored in the database.
    """
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("pragma journal_mode=wal")


@contextmanager
def training_run(
    root: Path, name: str, folder: Path, params: TrackingParams, *, is_active: Callable[[Path], bool]
) -> Iterator[Run]:
    """Yield a run that ends as FINISHED, as KILLED after an interrupt, and as FAILED after another exception.

    An unfinished run of the same training is continued.

    Args:
        folder: state folder of this training; stored as a tag of the run.
        is_active: whether a process uses a state folder. Runs with status RUNNING and no process are set to KILLED.
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
            run_id = create_run(client, name, provenance.provenance_tags(root) | {STATE_FOLDER_TAG: location})
        client.update_run(run_id, status="RUNNING")
        return Run(client, run_id)


def get_run(root: Path, trained: Mapping[str, Any], *, is_local: bool = True) -> Run:
    """The run that trained the model, or a new run if this database does not have it.

    DVC can restore a model from its cache although its run is in another database.

    Args:
        trained: the provenance in model.json.
        is_local: whether the database should have it; a message then says if it does not.
    """
    client, run_id = connect(root), trained["mlflow_run"]
    with require_mlflow(client):
        local_id = find_run(client, run_id)
        if local_id is None:
            if is_local:
                print(f"MLflow has no run {run_id}, which trained this model; its results go to a new run")
            local_id = create_run(client, "restored", provenance.training_tags(trained) | {ORIGINAL_RUN_TAG: run_id})
            client.set_terminated(local_id, "FINISHED")
        return Run(client, local_id)


def get_run_or_null(root: Path, trained: Mapping[str, Any], params: TrackingParams) -> Run:
    """Like `get_run`, but prints a message and returns a null run if MLflow cannot be used.

    Only for results that are also in DVC's files, because a backfill can add those later.
    """
    if not params.enabled:
        return NullRun(trained["mlflow_run"])
    try:
        return get_run(root, trained)
    except UserError as error:
        print(f"{error}; then `make mlflow-backfill` adds these results")
        return NullRun(trained["mlflow_run"])


def find_run(client: MlflowClient, run_id: str) -> str | None:
    """The id in this database of the run that was trained as `run_id`; a deleted run is restored."""
    run = none_if_missing(lambda: client.get_run(run_id))
    if run is None:
        query = f"tags.{ORIGINAL_RUN_TAG} = '{run_id}'"
        copies = client.search_runs([experiment_id(client)], query, ViewType.ALL)
        if not copies:
            return None
        run = min(copies, key=lambda copy: copy.info.lifecycle_stage)  # active before deleted
    if run.info.lifecycle_stage == "deleted":
        client.restore_run(run.info.run_id)
    return str(run.info.run_id)


def none_if_missing(read: Callable[[], Found]) -> Found | None:
    """What `read` returns; None if MLflow has no such run, model, version or alias. Other errors are raised."""
    try:
        return read()
    except MlflowException as error:
        if error.error_code not in MISSING_ERRORS:
            raise
        return None


@contextmanager
def require_mlflow(client: MlflowClient) -> Iterator[None]:
    """Turn MLflow's errors in the block into user errors.

    Raises:
        UserError: if MLflow fails in the block.
    """
    try:
        yield
    except (MlflowException, OSError) as error:
        message = connection_error(client.tracking_uri, error)
        raise UserError(f"{message}; fix this and run the same command again") from None


def _unfinished_run(client: MlflowClient, location: str, is_active: Callable[[Path], bool]) -> str | None:
    """The newest unfinished run with this location. Also sets stale runs of the same project to KILLED."""
    parent = location.rsplit("/", 1)[0]
    unfinished = [
        run
        for run in client.search_runs([experiment_id(client)], "attributes.status != 'FINISHED'", max_results=1000)
        if run.data.tags.get(STATE_FOLDER_TAG, "").startswith(f"{parent}/")  # MLflow's LIKE cannot escape ' % _
    ]
    for run in unfinished:
        if run.info.status == "RUNNING" and not is_active(Path(run.data.tags[STATE_FOLDER_TAG].split(":", 1)[1])):
            client.set_terminated(run.info.run_id, "KILLED")
    return next((str(run.info.run_id) for run in unfinished if run.data.tags[STATE_FOLDER_TAG] == location), None)


def create_run(client: MlflowClient, name: str, tags: dict[str, str], start_time: int | None = None) -> str:
    """Create a run and return its id; `start_time` is in milliseconds since 1970, by default now."""
    run = client.create_run(experiment_id(client), run_name=name, tags=tags, start_time=start_time)
    return str(run.info.run_id)


def experiment_id(client: MlflowClient) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return str(experiment.experiment_id)


@contextmanager
def registry_lock(client: MlflowClient, root: Path) -> Iterator[None]:
    """Let one process at a time register a version or change the champion.

    The lock file of a local database is next to the database, so it covers every project folder that uses it. With a
    server, the lock covers this project folder only. Between folders the last writer gets the alias. Each writer
    checks the alias after its change, and the history keeps all changes.

    Raises:
        UserError: if another process holds the lock for LOCK_SECONDS.
    """
    path = Path(f"{local_database(client.tracking_uri) or project_home(root) / 'mlflow.db'}.lock")
    try:
        with FileLock(path, timeout=LOCK_SECONDS):
            yield
    except Timeout:
        raise UserError(f"{path}: another process has held the lock for {LOCK_SECONDS:.0f} s; end it") from None
