"""Read MLflow's model registry and models without writing.

The database may be on a read-only mount, belong to another user, or be on a full disk. `tracking.client.connect`
creates what is missing; this module does not.
"""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
from sqlalchemy import URL

from cifar_resnet.models.saved_model import CONFIG_FILE, WEIGHTS_FILE
from cifar_resnet.registry.versions import download_uri
from cifar_resnet.tracking.location import (
    local_artifact_path,
    local_database,
    prepare_connection,
    tracking_uri,
    unusable_error,
)


@contextmanager
def open_registry(root: Path) -> Iterator[MlflowClient | None]:
    """Yield a client for MLFLOW_TRACKING_URI or the project's mlflow.db; None if there is no such local database.

    Raises:
        UserError: if the database or server cannot be read.
    """
    uri = tracking_uri(root)
    database = local_database(uri)
    if database is not None and not (database.exists() and database.stat().st_size):
        yield None
        return
    with ExitStack() as stack:
        try:
            prepare_connection(uri if database is None else stack.enter_context(readable_database(database)))
            client = MlflowClient()
            client.search_registered_models(max_results=1)
        except Exception as error:
            raise unusable_error(uri, error) from None
        yield client


@contextmanager
def readable_database(database: Path) -> Iterator[str]:
    """Yield an SQLAlchemy URI under which the SQLite database can be read, even if nothing can be written.

    A database with write-ahead log needs a file for its index beside it. If that cannot be created, and the log is
    empty, the database is opened as immutable. Otherwise a temporary copy of database and log is opened.

    Raises:
        sqlite3.Error: if the database cannot be read.
    """
    log = database.with_name(f"{database.name}-wal")
    with ExitStack() as stack:
        try:
            uri = checked_uri(database, "mode=rw")  # creates no database; opens read-only without permission to write
        except sqlite3.OperationalError:
            if log.exists() and log.stat().st_size:
                scratch = stack.enter_context(tempfile.TemporaryDirectory())
                copies = [shutil.copy(path, scratch) for path in (database, log)]
                uri = checked_uri(Path(copies[0]), "mode=rw")
            else:
                uri = checked_uri(database, "immutable=1")
        yield uri


def checked_uri(database: Path, option: str) -> str:
    """The SQLAlchemy URI of the database.

    Raises:
        sqlite3.Error: if the registry cannot be read from it.
    """
    file_uri = f"{database.as_uri()}?{option}"
    with closing(sqlite3.connect(file_uri, uri=True)) as connection:
        connection.execute("select count(*) from model_versions")
    name, _, value = option.partition("=")
    uri = URL.create("sqlite+pysqlite", database=database.as_uri(), query={name: value, "uri": "true"})
    return uri.render_as_string()  # for a URI with sqlite:///, MLflow would create the folder "file:"


def model_folder(uri: str, stack: ExitStack, root: Path) -> Path:
    """The folder with a registered model's files: in place if they are on this machine, otherwise a download.

    Args:
        uri: an MLflow URI, models:/... or runs:/...
        stack: deletes a download.

    Raises:
        UserError: if MLflow cannot provide the model.
    """
    folder = local_folder(uri, root)
    if folder is None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        download_uri(uri, folder)
    return folder


def local_folder(uri: str, root: Path) -> Path | None:
    """The folder of a models:/ URI on this machine, or None."""
    try:
        path = local_artifact_path(ModelsArtifactRepository.get_underlying_uri(uri), root)
    except MlflowException:  # runs:/ or unknown; the download reports the reason
        return None
    if path is None or not all((path / "artifacts" / name).is_file() for name in (WEIGHTS_FILE, CONFIG_FILE)):
        return None
    return path / "artifacts"
