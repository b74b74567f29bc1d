"""A database is read wherever it can be read, with its log."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy

from cifar_resnet.errors import UserError
from cifar_resnet.registry import reader


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database with a write-ahead log that is not yet merged, as after a crash."""
    path, copy = tmp_path / "original.db", tmp_path / "a#b?%20ü/mlflow.db"
    copy.parent.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("pragma journal_mode=wal")
        connection.execute("create table model_versions (name text)")
        connection.execute("pragma wal_checkpoint(truncate)")
        connection.execute("insert into model_versions values ('new')")
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    return copy


def connect_once(uri: str) -> sqlalchemy.Connection:
    return sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool).connect()


def names(database: Path) -> list[str]:
    """The names in model_versions, read as MLflow reads them."""
    with reader.readable_database(database) as uri, connect_once(uri) as connection:
        return [row[0] for row in connection.execute(sqlalchemy.text("select name from model_versions"))]


def without_index(database: Path) -> None:
    """Make the index of the log impossible, as on a read-only mount."""
    database.with_name("mlflow.db-shm").mkdir()


def test_the_log_of_a_database_is_read(database: Path) -> None:
    assert names(database) == ["new"]


def test_the_log_is_read_even_if_its_index_cannot_be_created(database: Path) -> None:
    without_index(database)
    before = sorted(path.name for path in database.parent.iterdir())
    assert names(database) == ["new"]
    assert sorted(path.name for path in database.parent.iterdir()) == before


def test_a_database_with_an_empty_log_is_read_where_nothing_can_be_created(database: Path) -> None:
    names(database)  # merges the log
    without_index(database)
    for log in (None, b""):
        if log is not None:
            database.with_name("mlflow.db-wal").write_bytes(log)
        assert names(database) == ["new"]


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + bytes(84)])
def test_a_damaged_database_is_a_user_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mlflow.db").write_bytes(content)
    with pytest.raises(UserError, match=r"MLflow at .*mlflow.db cannot be used"), reader.open_registry(tmp_path):
        pass
