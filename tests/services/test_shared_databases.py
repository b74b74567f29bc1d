"""MLflow and the search with several writers, on SQLite, PostgreSQL and HTTP; run by `make test-services`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from conftest import ROOT, git, rows, stage, write_params
from dvc.repo import Repo
from servers import START_SECONDS, free_port, mlflow_server_command, run_server

from cifar_resnet.errors import UserError
from cifar_resnet.params.file import load_params, with_overrides
from cifar_resnet.registry.promotion import promotion_history
from cifar_resnet.search.study import Study
from cifar_resnet.search.trial import TrialResult
from cifar_resnet.tracking import backfill
from cifar_resnet.tracking.client import connect, create_run

pytestmark = pytest.mark.services
NAME = "cifar10-resnet"


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """URL of a PostgreSQL server in a temporary folder, without a password and reachable on 127.0.0.1.

    It has the databases `mlflow`, `search` and `direct`, because each program needs a database of its own.
    """
    initdb = shutil.which("initdb") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    if initdb is None:
        pytest.fail("no PostgreSQL found: apt-get install postgresql")
    binaries, port = Path(initdb).resolve().parent, free_port()
    user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if user:  # PostgreSQL does not run as root
            shutil.chown(folder, "nobody", "nogroup")
        options = ["--auth=trust", "--username=mlflow", "--encoding=UTF8", "--no-sync"]
        subprocess.run([initdb, "-D", folder / "data", *options], check=True, capture_output=True, cwd=folder, **user)
        command = [binaries / "postgres", "-D", folder / "data", "-h", "127.0.0.1", "-p", str(port), "-k", folder]
        ready = [binaries / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        with run_server(command, folder / "log", ready, cwd=folder, **user):
            for database in ("mlflow", "search", "direct"):
                address = ["-h", "127.0.0.1", "-p", str(port), "-U", "mlflow"]
                subprocess.run([binaries / "createdb", *address, database], check=True, cwd=folder, **user)
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}"


@pytest.fixture(scope="module")
def mlflow_url(postgresql: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of `mlflow server` on PostgreSQL, with a folder for artifacts."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    stores = ["--backend-store-uri", f"{postgresql}/mlflow", "--artifacts-destination", (folder / "artifacts").as_uri()]
    url = f"http://127.0.0.1:{port}"
    with run_server(mlflow_server_command(port, *stores), folder / "log", f"{url}/health", cwd=folder):
        yield url


def test_a_training_outlives_its_mlflow_server_and_backfill_adds_the_missing_metrics(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, port, epochs = tmp_path / "project", free_port(), 30
    (root / "data").mkdir(parents=True)
    (root / "data/prepared").symlink_to(project / "data/prepared")
    write_params(root, train={"epochs": epochs}, evaluate={"corruptions": False}, register={"min_accuracy": 0.0})
    git(root, "init", "--quiet")
    Repo.init(str(root)).close()
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    git(root, *identity, "commit", "--quiet", "--allow-empty", "--message", "start")
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    command, log, ready = mlflow_server_command(port), tmp_path / "log", f"{url}/health"
    with run_server(command, log, ready, cwd=tmp_path):
        training = subprocess.Popen(
            [sys.executable, ROOT / "stages/train.py"], cwd=root, stdout=-1, stderr=subprocess.STDOUT, text=True
        )
        assert training.stdout is not None
        while f"epoch  2/{epochs}" not in (line := training.stdout.readline()):
            assert line, "training ended before its second epoch"
    output = training.communicate()[0]
    assert training.returncode == 0, output
    assert output.count("; continuing, metrics are logged later") == 1
    assert output.count("is incomplete; `make mlflow-backfill` completes it") == 1
    stage("evaluate").main(root)
    assert "; then `make mlflow-backfill` adds these results" in capsys.readouterr().out
    with pytest.raises(UserError, match="cannot be used"):
        stage("register").main(root)

    with run_server(command, log, ready, cwd=tmp_path):
        run_id = json.loads((root / "data/model/model.json").read_text())["provenance"]["mlflow_run"]
        client = connect(root)
        assert client.get_run(run_id).info.status == "RUNNING"
        backfill.backfill_runs(root)
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED"
        history = client.get_metric_history(run_id, "train_loss")
        assert sorted(metric.step for metric in history) == list(range(1, epochs + 1))
        metrics = json.loads((root / "data/evaluation/metrics.json").read_text())
        assert run.data.metrics["test_accuracy"] == metrics["accuracy"]
        stage("register").main(root)


def test_stages_use_a_shared_mlflow_server(
    project: Path, mlflow_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    decisions = []
    for seed in (0, 1):
        root = tmp_path / str(seed)
        (root / "data").mkdir(parents=True)
        (root / "data/prepared").symlink_to(project / "data/prepared")
        write_params(root, train={"seed": seed})
        for name in ("train", "evaluate", "register"):
            stage(name).main(root)
        decisions.append(json.loads((root / "data/registry/decision.json").read_text()))
        assert not (root / "mlflow.db").exists()
    assert [decision["version"] for decision in decisions] == [1, 2]
    assert decisions[0]["champion"]
    assert decisions[1]["comparison"]["images"] == 40

    client = connect(tmp_path)
    run = client.get_run(decisions[0]["run_id"])
    metrics = json.loads((tmp_path / "0/data/evaluation/metrics.json").read_text())
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_accuracy"] == metrics["accuracy"]
    assert len(client.get_metric_history(run.info.run_id, "train_loss")) == 3
    assert "history.csv" in {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    pixels = np.load(project / "data/prepared/test_images.npy", allow_pickle=False).transpose(0, 2, 3, 1)
    actual = [row["actual"] for row in rows(tmp_path / "0/data/evaluation/predictions.csv")]
    predicted = [record["class_name"] for record in model.predict(pixels)]
    assert np.mean([first == second for first, second in zip(predicted, actual, strict=True)]) > 0.5


def test_without_a_server_of_mlflow_artifacts_are_stored_in_the_project(
    postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{postgresql}/direct")
    client = connect(root)
    run_id = create_run(client, "run", {})
    client.log_text(run_id, "content", "file.txt")
    assert (root / "mlartifacts" / run_id / "artifacts/file.txt").read_text() == "content"
    assert not list(elsewhere.iterdir())


def test_concurrent_registrations_give_one_version_and_one_decision(project: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "DVC_ROOT": str(tmp_path)}
    connect(tmp_path)
    roots = [tmp_path / str(number) for number in range(3)]
    for root in roots:
        (root / "data").mkdir(parents=True)
        for name in ("prepared", "model", "evaluation"):
            (root / "data" / name).symlink_to(project / "data" / name)
        write_params(root)
    command = [sys.executable, ROOT / "stages/register.py"]
    writers = [subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE) for root in roots]
    errors = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 3, errors
    decisions = [json.loads((root / "data/registry/decision.json").read_text()) for root in roots]
    assert {(decision["version"], decision["champion"]) for decision in decisions} == {(1, True)}
    client = connect(tmp_path)
    assert len(client.search_model_versions(f"name='{NAME}'")) == 1
    assert [change.after for change in promotion_history(client, NAME)] == [1]


WRITER = """
import sys
from pathlib import Path
from cifar_resnet.params.schema import TrackingParams
from cifar_resnet.tracking.client import training_run

root, name = Path(sys.argv[1]), sys.argv[2]
params = TrackingParams(enabled=True, system_metrics=True)
with training_run(root, name, root / "data/scratch" / name, params, is_active=lambda _: True) as run:
    for epoch in range(1, 51):
        run.log_epoch({"train_loss": epoch / 7, "train_accuracy": epoch / 50, "validation_loss": 0.5}, epoch)
print(run.id)
"""


def test_four_writers_in_one_new_sqlite_database_lose_no_metric(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", WRITER, tmp_path, str(number)] for number in range(4)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    writers = [subprocess.Popen(command, text=True, **pipes) for command in commands]
    outputs = [writer.communicate() for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4, outputs
    assert not any("locked" in error for _, error in outputs)
    client = connect(tmp_path)
    for output, _ in outputs:
        for name in ("train_loss", "train_accuracy", "validation_loss"):
            history = client.get_metric_history(output.split()[-1], name)
            assert sorted(metric.step for metric in history) == list(range(1, 51))


def test_the_trial_of_a_killed_search_worker_is_trained_by_another(
    project: Path, postgresql: str, tmp_path: Path
) -> None:
    """Four workers on PostgreSQL, one killed in the middle of a trial: no trial is lost, counted twice or stuck."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepared").symlink_to(project / "data/prepared")
    search = {"trials": 12, "epochs": 20, "heartbeat_timeout_seconds": 60, "pruner": "none"}
    write_params(tmp_path, search=search | {"storage": f"{postgresql}/search"})
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cifar_resnet", "search"]
    logs = [tmp_path / f"{number}.log" for number in range(4)]
    workers = []
    for log in logs:
        with log.open("w") as stream:
            workers.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=stream, stderr=stream))

    def study() -> Study:
        return Study(tmp_path, load_params(tmp_path / "params.yaml"))

    deadline = time.monotonic() + 5 * START_SECONDS
    killed = None
    while killed is None:
        assert time.monotonic() < deadline, [log.read_text() for log in logs]
        time.sleep(1)
        if sum(result.outcome == "running" and result.epochs > 0 for result in stored_results(study)) >= 2:
            trials = study().optuna_study.trials
            trial = next(trial for trial in trials if trial.state.name == "RUNNING" and trial.user_attrs)
            killed = trial.number
            os.kill(int(trial.user_attrs["worker"].split(":")[1]), signal.SIGKILL)
    codes = sorted(worker.wait(10 * START_SECONDS) for worker in workers)
    assert codes == [-signal.SIGKILL, 0, 0, 0], [log.read_text() for log in logs]

    results = stored_results(study)
    assert [result.number for result in results if result.outcome == "killed"] == [killed]
    assert [result.retry_of for result in results if result.retry_of is not None] == [killed]
    assert len(results) == 13
    finished = [result for result in results if result.outcome == "finished"]
    assert len(finished) == len({str(result.overrides) for result in finished}) == 12
    assert {str(result.overrides) for result in results} == {str(result.overrides) for result in finished}
    client = connect(tmp_path)
    for result in results:
        assert result.mlflow_run is not None
        status = client.get_run(result.mlflow_run).info.status
        assert status == ("KILLED" if result.number == killed else "FINISHED")


def test_a_search_in_the_database_of_mlflow_is_an_error(project: Path, mlflow_url: str, postgresql: str) -> None:
    params = with_overrides(load_params(project / "params.yaml"), {"search.storage": f"{postgresql}/mlflow"})
    with pytest.raises(UserError, match="or name a database that the search has to itself"):
        Study(project, params, ("data", 10))


def stored_results(study: Callable[[], Study]) -> list[TrialResult]:
    """Empty as long as there is no study."""
    try:
        return study().results()
    except UserError:
        return []
