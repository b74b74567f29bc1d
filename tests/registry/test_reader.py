"""Reading the registry needs no permission, place or intention to write."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy
from conftest import tiny_images

from cifar_resnet.errors import UserError
from cifar_resnet.registry import reader

# Root may write everywhere, unless it drops this capability.
AS_USER = ["setpriv", "--bounding-set", "-dac_override"] if os.getuid() == 0 else []


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


@pytest.fixture
def read_only_project(project: Path) -> Iterator[Path]:
    """A copy of the project without permissions to write."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "project")
        shutil.copytree(project, root, ignore=shutil.ignore_patterns("raw", "prepared"))
        np.save(root / "images.npy", tiny_images(1, seed=3).pixels)
        for path in (Path(folder), root, *root.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield root
        for path in (Path(folder), *(path for path in root.rglob("*") if path.is_dir()), root):
            path.chmod(0o755)


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


@pytest.mark.parametrize("arguments", [[], ["--model", "1"], ["--model", "models:/cifar10-resnet@champion"]])
def test_the_champion_predicts_without_permission_to_write(read_only_project: Path, arguments: list[str]) -> None:
    command = [*AS_USER, sys.executable, "-m", "cifar_resnet", "predict", "images.npy", *arguments]
    before = sorted(read_only_project.rglob("*"))
    probe = subprocess.run([*AS_USER, "touch", read_only_project / "new"], capture_output=True, check=False)
    assert probe.returncode != 0
    done = subprocess.run(command, cwd=read_only_project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("predict: 10 images, model: ")
    assert "data/model" not in done.stderr
    assert sorted(read_only_project.rglob("*")) == before
