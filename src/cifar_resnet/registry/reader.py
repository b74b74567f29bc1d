"""Read MLflow's model registry and models without writing.

The database may be on a read-only mount, belong to another user, or be on a full disk. `tracking.client.connect`
creates what is missing; this module does not.
"""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
from sqlalchemy import URL

from cifar_resnet.errors import UserError
from cifar_resnet.models.saved_model import CONFIG_FILE, WEIGHTS_FILE
from cifar_resnet.registry.versions import download_uri
from cifar_resnet.tracking.client import HTTP_LIMITS
from cifar_resnet.tracking.run import connection_error

SQLITE = "sqlite:///"


@contextmanager
def open_registry(root: Path) -> Iterator[MlflowClient | None]:
    """Yield a client for MLFLOW_TRACKING_URI or the project's mlflow.db; None if there is no such local database.

    Raises:
        UserError: if the database or server cannot be read.
    """
    home = Path(os.environ.get("DVC_ROOT", root)).resolve()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{home / 'mlflow.db'}"
    database = home / uri.removeprefix(SQLITE) if uri.startswith(SQLITE) else None
    if database is not None and not (database.exists() and database.stat().st_size):
        yield None
        return
    with ExitStack() as stack:
        try:
            mlflow.set_tracking_uri(uri if database is None else stack.enter_context(readable_database(database)))
            for key, value in HTTP_LIMITS.items():
                os.environ.setdefault(key, value)
            client = MlflowClient()
            client.search_registered_models(max_results=1)
        except Exception as error:
            raise UserError(f"{connection_error(uri, error)}; start it or unset MLFLOW_TRACKING_URI") from None
        yield client


@contextmanager
def readable_database(database: Path) -> Iterator[str]:
    """Yield an SQLAlchemy URI under which the SQLite database can be read, even if nothing can be written.

    A database with write-ahead log needs a file for its index beside it. If that cannot be created, and the log is
    empty, the database is opened as immutable. Otherwise a temporary copy of database and log is opened.

    Raises:
        sqlite3.Error: if the database cannot be read.
    """
    try:
        yield checked_uri(database, "mode=rw")  # creates no database; opens read-only without permission to write
        return
    except sqlite3.OperationalError:
        log = database.with_name(f"{database.name}-wal")
        if not (log.exists() and log.stat().st_size):
            uri = checked_uri(database, "immutable=1")
            yield uri
            return
    with tempfile.TemporaryDirectory() as scratch:
        copies = [shutil.copy(path, scratch) for path in (database, log)]
        yield checked_uri(Path(copies[0]), "mode=rw")


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


def model_folder(uri: str, stack: ExitStack) -> Path:
    """The folder with a registered model's files: in place if they are on this machine, otherwise a download.

    Args:
        uri: an MLflow URI, models:/... or runs:/...
        stack: deletes a download.

    Raises:
        UserError: if MLflow cannot provide the model.
    """
    folder = local_folder(uri)
    if folder is None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        download_uri(uri, folder)
    return folder


def local_folder(uri: str) -> Path | None:
    """The folder of a models:/ URI on this machine, or None."""
    try:
        parts = urlsplit(ModelsArtifactRepository.get_underlying_uri(uri))
    except MlflowException:  # runs:/ or unknown; the download reports the reason
        return None
    folder = Path(unquote(parts.path)) / "artifacts"
    is_local = parts.scheme in ("", "file") and all((folder / name).is_file() for name in (WEIGHTS_FILE, CONFIG_FILE))
    return folder if is_local else None
