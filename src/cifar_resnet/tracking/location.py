"""Where MLflow's runs and files are: the tracking URI, a local database file, and the folder of artifacts."""

import itertools
import logging
import os
import platform
import shlex
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import mlflow
import sqlalchemy
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.utils.uri import get_uri_scheme

from cifar_resnet.errors import UserError

CONNECTION_LIMITS = {  # MLflow's defaults are 7 retries and 120 seconds
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds; 34 in all, less than training.distributed.TIMEOUT
    "PGCONNECT_TIMEOUT": "10",  # seconds
}
ALLOWED_URIS = "http://host:port, sqlite:///file or postgresql+psycopg2://user@host/database"
# SQLAlchemy 2.1 takes postgresql:// for psycopg 3. The driver that is tested here is psycopg2.
DRIVER_ADVICE = "run `pip install psycopg2-binary` and let the address start with postgresql+psycopg2://"
# Columns with absolute paths of artifacts. The first determines the paths of new runs and models.
PATH_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
STATE_FOLDER_TAG = "state_folder"  # "host:folder" of a training's state


def project_home(root: Path) -> Path:
    """The project's root; `dvc exp run --temp` runs in a temporary copy, and DVC_ROOT names the project's root."""
    return Path(os.environ.get("DVC_ROOT", root)).resolve()


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI or, if that is not set, mlflow.db at the project's root.

    A relative path of SQLite starts at the project's root.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    database = local_database(uri)
    if database is None:
        return uri
    # SQLAlchemy quotes %, ? and #. With sqlite:///, MLflow would also create the folder with the quoted name.
    url = sqlalchemy.make_url(uri).set(drivername="sqlite+pysqlite", database=str(project_home(root) / database))
    return url.render_as_string(hide_password=False)


def local_database(uri: str) -> Path | None:
    """The file of an SQLite database; None for all else, also for a database in memory or a file: URI of SQLite."""
    if not uri.startswith("sqlite"):
        return None
    try:
        name = sqlalchemy.make_url(uri).database
    except (ValueError, sqlalchemy.exc.ArgumentError):  # MLflow reports it
        return None
    return Path(name) if name and not name.startswith(("file:", ":memory:")) else None


def uri_scheme(uri: str) -> str:
    """As MLflow reads it, for example postgresql for postgresql+psycopg2."""
    try:
        return str(get_uri_scheme(uri))
    except ValueError:  # a bracket in the password
        return uri.partition(":")[0]


def is_database(uri: str) -> bool:
    """Whether MLflow opens a database itself, without a server of MLflow."""
    return uri_scheme(uri) in DATABASE_ENGINES


def set_tracking_uri(uri: str) -> None:
    """Like MLflow's function, but MLFLOW_TRACKING_URI stays as the user set it.

    Otherwise the next project that the same process opens would use this project's database.
    """
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before


def prepare_connection(uri: str) -> None:
    """Set MLflow's tracking URI and limits, and check that a database can be opened.

    Raises:
        Exception: of any type, if it cannot be opened: at once, where MLflow would retry for minutes.
    """
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns at every retry
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs tracebacks
    for key, value in CONNECTION_LIMITS.items():
        os.environ.setdefault(key, value)
    set_tracking_uri(uri)
    if local_database(uri):
        table_names(uri, {"timeout": 60})
    elif is_database(uri) and not uri.startswith("sqlite"):
        table_names(uri, {})


def database_url(uri: str, root: Path, *, key: str) -> sqlalchemy.URL:
    """The URL of a database; a relative path of SQLite starts at the project's root.

    Args:
        key: of params.yaml, for the message.

    Raises:
        UserError: if the text is not a URL; the message has no password.
    """
    try:
        url = sqlalchemy.make_url(uri)
    except (ValueError, sqlalchemy.exc.ArgumentError):
        raise UserError(
            f"{key}: {display_uri(uri)} is not an address, for example because its port is not a number; allowed are "
            "sqlite:///file and postgresql+psycopg2://user@host:port/database"
        ) from None
    return url.set(database=str(project_home(root) / str(url.database))) if url.drivername == "sqlite" else url


def table_names(uri: str, connect_options: dict[str, Any]) -> list[str]:
    """The tables of a database; an SQLite file that does not exist has none and is not created.

    Raises:
        Exception: of any type, if the database cannot be opened.
    """
    database = local_database(uri)
    if database is not None and not database.exists():
        return []
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, connect_args=connect_options)
    return sqlalchemy.inspect(engine).get_table_names()


def display_uri(uri: str) -> str:
    """The path of a local database, or the URI without user, password and options, which can be secrets."""
    database = local_database(uri)
    if database or (uri.startswith("sqlite") and "@" not in uri):
        return str(database or uri)
    with suppress(ValueError, sqlalchemy.exc.ArgumentError):  # for example a port that is not a number
        if not is_database(uri):
            parts = urlsplit(uri)
            return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
        if uri.count("@") < 2:  # otherwise SQLAlchemy takes a part of the password for the host
            url = sqlalchemy.make_url(uri)
            return str(sqlalchemy.URL.create(url.drivername, host=url.host, port=url.port, database=url.database))
    return f"{uri.partition(':')[0]}://..."


def without_secrets(text: str, uri: str) -> str:
    """The text without the user and the passwords of the URI."""
    text, secrets = text.replace(uri, display_uri(uri)), list[str]()
    with suppress(ValueError):
        user, _, _ = urlsplit(uri).netloc.rpartition("@")
        secrets.append(user.partition(":")[2])
        for part in filter(None, (user, user.rpartition("@")[2])):  # a password with an @ ends in the host for drivers
            text = text.replace(f"{part}@", "")
    with suppress(ValueError, sqlalchemy.exc.ArgumentError):
        url = sqlalchemy.make_url(uri)
        secrets.append(url.password or "")
        secrets += itertools.chain(*(value for name, value in url.normalized_query.items() if "pass" in name))
    for secret in filter(None, secrets):
        for form in (quote(secret, safe=""), secret):
            text = text.replace(form, "***")
    return text


def connection_error(uri: str, error: Exception) -> str:
    """The error as one line, without a password that the URI may contain."""
    message = without_secrets(str(error), uri)
    return f"MLflow at {display_uri(uri)} cannot be used ({' '.join(message.split())[:200]})"


def unusable_error(uri: str, error: Exception) -> UserError:
    """The error of a database or server that cannot be opened, with advice."""
    if "out-of-date database schema" in str(error):
        address = shlex.quote(uri) if local_database(uri) else '"$MLFLOW_TRACKING_URI"'  # it can contain a password
        return UserError(
            f"MLflow at {display_uri(uri)} was created by another version of MLflow; copy the database, then run "
            f"`mlflow db upgrade {address}`; if that fails, install the newer MLflow that created it"
        )
    if isinstance(error, ModuleNotFoundError) and uri_scheme(uri) == "postgresql":
        advice = DRIVER_ADVICE
    elif local_database(uri) is not None:
        advice = "make the file readable and writable, or move it away: `make mlflow-backfill` fills a new one"
    elif (is_database(uri) and "://" in uri and uri_scheme(uri) != "sqlite") or uri_scheme(uri) in ("http", "https"):
        advice = "start it or unset MLFLOW_TRACKING_URI"
    else:
        advice = f"MLFLOW_TRACKING_URI can be {ALLOWED_URIS}; without it, mlflow.db is used"
    return UserError(f"{connection_error(uri, error)}; {advice}")


def artifact_folder(home: Path) -> Path:
    return home / "mlartifacts"


def move_artifact_paths(database: Path, home: Path, location: str) -> bool:
    """Adapt the absolute paths in the project's database after the project was moved, renamed or copied.

    If the files were not copied, only the experiment changes: the paths of existing runs stay valid.

    Args:
        location: artifact location of the experiment, as stored.

    Returns:
        Whether the database was changed.
    """
    parts, folder = urlsplit(location), artifact_folder(home)
    old = Path(unquote(parts.path) if parts.scheme else location)
    is_moved = parts.scheme in ("", "file") and old.name == folder.name and old != folder
    if not is_moved or not database.resolve().is_relative_to(home):
        return False
    columns = PATH_COLUMNS if folder.exists() or not old.exists() else PATH_COLUMNS[:1]
    prefixes = {"old": location, "new": folder.as_uri()}
    state = {"key": STATE_FOLDER_TAG, "old": f"{old.parent}/", "new": f"{platform.node()}:{home}/"}
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        for table, column in columns:
            connection.execute(
                f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1) "  # noqa: S608
                f"WHERE {column} = :old OR substr({column}, 1, length(:old) + 1) = :old || '/'",
                prefixes,
            )
        connection.execute(
            "UPDATE tags SET value = :new || substr(value, instr(value, ':') + 1 + length(:old)) "
            "WHERE key = :key AND substr(value, instr(value, ':') + 1, length(:old)) = :old",
            state,
        )
    return True


def local_artifact_path(uri: str, root: Path) -> Path | None:
    """The local path of an artifact's URI, also if the project was moved; None if another machine has the artifact.

    For readers that cannot change the database, see `move_artifact_paths`.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return None
    path, folder = Path(unquote(parts.path) if parts.scheme else uri), artifact_folder(project_home(root))
    if folder.name not in path.parts or path.is_relative_to(folder):
        return path
    start = len(path.parts) - path.parts[::-1].index(folder.name)  # after the last folder of this name
    moved = folder.joinpath(*path.parts[start:])
    return moved if moved.exists() else path
