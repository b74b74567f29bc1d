"""Where runs and artifacts are stored: relative URIs, special characters, moved projects, unusable databases."""

import shutil
import socket
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import write_params
from mlflow import MlflowClient

from cifar_resnet.cli.main import make_parser
from cifar_resnet.errors import UserError
from cifar_resnet.registry.load import find_model
from cifar_resnet.registry.versions import download_version, find_version
from cifar_resnet.tracking.client import EXPERIMENT, connect, create_run
from cifar_resnet.tracking.location import ALLOWED_URIS, DRIVER_ADVICE, display_uri, local_database, unusable_error

NAME = "cifar10-resnet"


def add_artifact(client: MlflowClient, folder: Path) -> Path:
    """Log a file to a new run and return the path under which `connect` of a project in `folder` stores it."""
    run_id = create_run(client, "run", {})
    client.log_text(run_id, "content", "file.txt")
    return folder / "mlartifacts" / run_id / "artifacts/file.txt"


def stored_paths(database: Path) -> str:
    with closing(sqlite3.connect(database)) as connection:
        return "\n".join(line for line in connection.iterdump() if "file:" in line)


@pytest.mark.parametrize("name", ["mlflow.db", "new/a%20b.db"])
def test_a_relative_uri_starts_at_the_projects_root_also_in_a_temporary_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    project, copy = tmp_path / "project", tmp_path / "copy"
    project.mkdir()
    copy.mkdir()
    monkeypatch.chdir(copy)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{name}")
    monkeypatch.setenv("DVC_ROOT", str(project))
    client = connect(copy)
    assert (project / name.replace("%20", " ")).stat().st_size
    assert local_database(client.tracking_uri) == project / name.replace("%20", " ")
    assert add_artifact(client, project).read_text() == "content"
    assert not list(copy.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "project"]


def test_a_project_path_may_have_characters_with_a_meaning_in_urls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "a#b?c=d%20e ü'&x"
    root, elsewhere = tmp_path / name, tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    client = connect(root)
    assert add_artifact(client, root).read_text() == "content"
    assert display_uri(client.tracking_uri) == str(root / "mlflow.db")
    assert {path.name for path in root.iterdir()} >= {"mlflow.db", "mlartifacts"}
    assert not list(elsewhere.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {name, "elsewhere"}


def test_two_projects_in_one_process_have_their_own_databases(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        create_run(connect(tmp_path / name), name, {})
    client = connect(tmp_path / "first")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert [run.info.run_name for run in client.search_runs([experiment.experiment_id])] == ["first"]


def test_a_copied_and_then_renamed_project_uses_its_own_artifacts(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stored_paths(project / "mlflow.db")
    copy, renamed = tmp_path / "a copy", tmp_path / "renamed"
    shutil.copytree(project, copy, ignore=shutil.ignore_patterns("raw", "prepared"))
    for root, old in ((copy, project), (renamed, copy)):
        if root == renamed:
            copy.rename(renamed)
        with find_model(root, "champion") as model:  # reads, and does not change the database
            assert model.folder.is_relative_to(root)
        client = connect(root)
        assert capsys.readouterr().out.count("the project was moved or copied") == 1
        paths = stored_paths(root / "mlflow.db")
        assert f"{old.as_uri()}/" not in paths
        assert paths.count(root.as_uri()) >= before.count(project.as_uri()) == 4
        version = find_version(client, NAME, "champion")
        assert version is not None
        download = tmp_path / f"download of {root.name}"
        download.mkdir()
        download_version(version, download)
        assert (download / "model.safetensors").stat().st_size
        assert client.get_run(version.run_id).info.artifact_uri.startswith(root.as_uri())
        assert client.list_artifacts(version.run_id)
        assert add_artifact(client, root).exists()
        connect(root)
        assert not capsys.readouterr().out
    assert stored_paths(project / "mlflow.db") == before


def test_an_unfinished_training_is_known_by_the_new_path_of_its_state(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    run_id = create_run(connect(old), "run", {"state_folder": f"host:{old}/data/scratch/abc", "note": f"host:{old}/x"})
    old.rename(new)
    tags = connect(new).get_run(run_id).data.tags
    assert tags["state_folder"].endswith(f":{new}/data/scratch/abc")
    assert tags["note"] == f"host:{old}/x"


def test_runs_whose_files_were_not_copied_keep_their_paths(tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    original.mkdir()
    copy.mkdir()
    file = add_artifact(connect(original), original)
    for path in original.glob("mlflow.db*"):  # without mlartifacts
        shutil.copy(path, copy)
    client = connect(copy)
    run_id = file.parents[1].name
    assert client.get_run(run_id).info.artifact_uri == file.parent.as_uri()
    assert Path(client.download_artifacts(run_id, "file.txt")).read_text() == "content"
    assert add_artifact(client, copy).exists()


def test_a_database_outside_the_project_keeps_its_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/shared/mlflow.db")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        client = connect(tmp_path / name)
    assert client.get_experiment_by_name(EXPERIMENT).artifact_location == (tmp_path / "first/mlartifacts").as_uri()


def test_a_deleted_experiment_is_restored_with_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = connect(tmp_path)
    run_id = create_run(client, "run", {})
    client.delete_experiment(client.get_run(run_id).info.experiment_id)
    client = connect(tmp_path)
    assert capsys.readouterr().out == f"MLflow: the deleted experiment {EXPERIMENT} is restored, with its runs\n"
    assert client.get_run(run_id).info.lifecycle_stage == "active"
    create_run(client, "next", {})


def test_a_database_of_another_version_of_mlflow_is_an_error_with_the_command_that_upgrades_it(tmp_path: Path) -> None:
    connect(tmp_path)
    other = tmp_path / "it's older"
    other.mkdir()
    shutil.copy(tmp_path / "mlflow.db", other)
    with closing(sqlite3.connect(other / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '75868b020152'")
    with pytest.raises(UserError) as raised:
        connect(other)
    message = str(raised.value)
    assert "another version of MLflow" in message
    assert f"`mlflow db upgrade 'sqlite+pysqlite:///{tmp_path}/it%27s older/mlflow.db'`" in message
    assert "MLFLOW_TRACKING_URI" not in message
    assert "\n" not in message


# Only the extra services installs the driver of PostgreSQL.
@pytest.mark.parametrize("scheme", ["http", pytest.param("postgresql+psycopg2", marks=pytest.mark.services)])
@pytest.mark.parametrize("command", [["registry", "list"], ["registry", "rollback"], ["backfill"]])
def test_an_unreachable_server_is_an_error_in_one_line_after_a_few_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, command: list[str]
) -> None:
    write_params(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://me:secret@{address}/x")
    arguments = make_parser().parse_args(command)
    start = time.monotonic()
    with pytest.raises(UserError) as raised:
        arguments.command(tmp_path, arguments)
    assert time.monotonic() - start < 20
    message = str(raised.value)
    assert message.startswith(f"MLflow at {scheme}://{address}/x cannot be used")
    assert message.endswith("; start it or unset MLFLOW_TRACKING_URI")
    assert "secret" not in message
    assert "\n" not in message


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_file_or_folder_that_is_no_database_is_an_error_with_advice_at_once(tmp_path: Path, is_folder: bool) -> None:
    database = tmp_path / "mlflow.db"
    database.mkdir() if is_folder else database.write_bytes(b"no database" * 100)
    start = time.monotonic()
    with pytest.raises(UserError, match="move it away: `make mlflow-backfill` fills a new one"):
        connect(tmp_path)
    assert time.monotonic() - start < 5
    assert list(tmp_path.iterdir()) == [database]


@pytest.mark.parametrize("command", [["registry", "list"], ["registry", "rollback"], ["registry", "promote", "1"]])
def test_without_a_database_no_model_is_registered_and_nothing_is_created(tmp_path: Path, command: list[str]) -> None:
    write_params(tmp_path)
    arguments = make_parser().parse_args(command)
    with pytest.raises(
        UserError,
        match=r"^no model cifar10-resnet is registered in .*; `cifar-resnet registry add pretrained` registers the "
        r"pretrained weights, .* registers what is trained already$",
    ):
        arguments.command(tmp_path, arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("mlruns", f"MLFLOW_TRACKING_URI can be {ALLOWED_URIS}; without it, mlflow.db is used"),
        ("sqlite:mlflow.db", f"MLFLOW_TRACKING_URI can be {ALLOWED_URIS}; without it, mlflow.db is used"),
        ("nonsense://x", f"MLFLOW_TRACKING_URI can be {ALLOWED_URIS}; without it, mlflow.db is used"),
        ("postgresql+pg8000://me:secret@127.0.0.1:9/x", DRIVER_ADVICE),
        ("postgresql+pg8000://me:#secret@127.0.0.1:9/x", DRIVER_ADVICE),
        ("postgresql+pg8000://me:/?secret@127.0.0.1:9/x", DRIVER_ADVICE),
        ("postgresql+pg8000://127.0.0.1:9/x?user=me&password=secret", DRIVER_ADVICE),
        ("postgresql+psycopg2://me:secret@db:port/x", "start it or unset MLFLOW_TRACKING_URI"),
        ("http://me:secret@host:port", "start it or unset MLFLOW_TRACKING_URI"),
        ("sqlite://me:secret@h:abc/x", f"MLFLOW_TRACKING_URI can be {ALLOWED_URIS}; without it, mlflow.db is used"),
    ],
)
def test_an_address_that_cannot_be_used_gets_the_advice_for_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, advice: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setitem(sys.modules, "pg8000", None)  # not installed
    with pytest.raises(UserError) as raised:
        connect(tmp_path)
    assert str(raised.value).endswith(f"; {advice}")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "password", ["secret", "secret#1", "secret/1", "secret?1", "secret%401", "secret@1", "1@secret", "1[secret"]
)
def test_no_message_has_a_password(password: str) -> None:
    uri = f"postgresql+psycopg2://me:{password}@db:5432/x"
    assert display_uri(uri) in ("postgresql+psycopg2://db:5432/x", "postgresql+psycopg2://...")
    for text in (uri, f"login with {password}", f"login with {unquote(password)}", "out-of-date database schema"):
        assert "secret" not in str(unusable_error(uri, OSError(text)))
