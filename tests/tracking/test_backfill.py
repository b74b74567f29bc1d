"""MLflow from DVC's files: a small project in Git and DVC with a result, and an experiment on it."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import write_params
from dvc.repo import Repo
from mlflow import MlflowClient
from mlflow.entities import Run

from cifar_resnet.cli import main as command
from cifar_resnet.errors import UserError
from cifar_resnet.files import write_json
from cifar_resnet.tracking import backfill
from cifar_resnet.tracking.client import connect, create_run, experiment_id, get_run
from cifar_resnet.training.history import EpochRecord, write_history

IDS = {"result": "a" * 32, "longer": "b" * 32}


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    done = subprocess.run(["git", *identity, *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def result(root: Path, run_id: str, epochs: int, **origin: str) -> None:
    """What train and evaluate write, as far as MLflow shows it."""
    history = [
        EpochRecord(epoch, 2.0 / epoch, 0.5, 1.0, epoch / 10, 0.1, 30.0, 100.0) for epoch in range(1, epochs + 1)
    ]
    write_history(root / backfill.HISTORY, history)
    provenance = {"mlflow_run": run_id, "train_data": "d" * 32, "seconds": 30.0 * epochs, **origin}
    write_json(root / backfill.CONFIG, {"provenance": provenance})
    write_json(root / backfill.STATISTICS, {"source": "https://example.org/cifar.tar.gz"})
    metrics = {"accuracy": epochs / 10, "accuracy_tta": 0.5, "parameters": 7, "mlflow_run": run_id, "interval": [0, 1]}
    write_json(root / backfill.EVALUATION / "metrics.json", metrics)
    (root / backfill.EVALUATION / "confusion_matrix.png").write_bytes(b"a picture")
    write_params(root, train={"epochs": epochs})


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("original")
    git(root, "init", "--quiet")
    git(root, "config", "user.name", "test")
    git(root, "config", "user.email", "test@localhost")
    write_params(root, train={"epochs": 3})
    Repo.init(str(root)).close()
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "start")
    commit = git(root, "rev-parse", "HEAD")
    result(root, IDS["result"], 3, git_commit=commit, git_dirty="false")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "result")
    result(root, IDS["longer"], 4, git_commit=commit, git_dirty="true", dvc_experiment="longer")
    with Repo(str(root)) as repo:
        repo.experiments.save(name="longer")
    git(root, "reset", "--quiet", "--hard")
    return root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "project"))


def content(client: MlflowClient) -> dict[str, Any]:
    """All that MLflow shows, by the id that each run had where it trained."""
    found: list[Run] = client.search_runs([experiment_id(client)])
    return {
        run.data.tags.get("original_run", run.info.run_id): {
            "info": dict(run.info),
            "data": (run.data.params, run.data.metrics, run.data.tags),
            "history": {
                name: sorted((each.step, each.value) for each in client.get_metric_history(run.info.run_id, name))
                for name in run.data.metrics
            },
            "files": sorted(each.path for each in client.list_artifacts(run.info.run_id)),
            "pictures": sorted(each.path for each in client.list_artifacts(run.info.run_id, "evaluation")),
            "data sets": [each.dataset.digest for each in run.inputs.dataset_inputs],
        }
        for run in found
    }


def test_a_new_database_gets_the_workspace_and_every_experiment_once(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backfill.backfill_runs(root)
    said = capsys.readouterr().out
    assert said.count("added") == 2
    assert "workspace: run" in said
    assert "longer: run" in said
    client = connect(root)
    found = content(client)
    assert set(found) == set(IDS.values())
    for run_id, epochs in zip(IDS.values(), (3, 4), strict=True):
        run = found[run_id]
        params, metrics, tags = run["data"]
        assert run["info"]["status"] == "FINISHED"
        assert run["info"]["end_time"] - run["info"]["start_time"] == 30_000 * epochs
        assert params["train.epochs"] == str(epochs)
        assert params["train.warmup_epochs"] == "0.0"  # as train logs it
        assert run["history"]["train_loss"] == [(step, round(2 / step, 6)) for step in range(1, epochs + 1)]
        assert metrics["test_accuracy"] == metrics["best_validation_accuracy"] == epochs / 10
        assert run["files"] == ["evaluation", "history.csv"]
        assert run["pictures"] == ["evaluation/confusion_matrix.png"]
        assert run["data sets"] == [tags["train_data"]] == ["d" * 32]
    (first, second) = (found[run_id] for run_id in IDS.values())
    assert first["info"]["run_name"].startswith("seed 0, 3 epochs")
    assert second["info"]["run_name"] == "train.epochs=4"
    commit = first["data"][2]["git_commit"]
    assert f"git checkout {commit}\ndvc repro\n" in first["data"][2]["mlflow.note.content"]
    assert f"git checkout {commit}\ndvc exp run -S train.epochs=4\n" in second["data"][2]["mlflow.note.content"]
    assert second["data"][2]["dvc_experiment"] == "longer"

    backfill.backfill_runs(root)
    assert "rebuild: 2 runs, 2 of them needed nothing" in capsys.readouterr().out
    assert content(client) == found
    rebuilt = get_run(root, IDS["longer"])  # where evaluate and register write
    assert rebuilt.known["original_run"] == IDS["longer"]


def test_a_run_that_mlflow_lost_in_the_middle_is_completed_in_place(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = connect(root)
    broken = create_run(client, "broken", {})
    client.log_metric(broken, "train_loss", 2.0, step=1)
    client.log_param(broken, "train.epochs", "3")
    result(root, broken, 3, git_commit="")
    backfill.backfill_runs(root)
    said = capsys.readouterr().out
    assert f"workspace: run {broken} gets 2 epochs, the end, test results, figures" in said
    found = content(client)
    assert set(found) == {broken, *IDS.values()}
    assert found[broken]["info"]["status"] == "FINISHED"
    assert [step for step, _ in found[broken]["history"]["train_loss"]] == [1, 2, 3]
    backfill.backfill_runs(root)
    assert content(client) == found


def test_a_deleted_run_comes_back_and_new_test_results_are_delivered(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backfill.backfill_runs(root)
    client = connect(root)
    before = content(client)
    client.delete_run(get_run(root, IDS["result"]).id)
    (root / "data/evaluation/metrics.json").write_text('{"accuracy": 0.9, "accuracy_tta": 0.5, "parameters": 7}')
    monkeypatch.setattr(sys, "argv", ["cifar_resnet", "backfill"])
    assert command.main(root) == 0
    after = content(client)
    assert set(after) == set(before)
    assert after[IDS["result"]]["data"][1]["test_accuracy"] == 0.9
    assert "**90.00%** of the test images" in after[IDS["result"]]["data"][2]["mlflow.note.content"]


def test_without_a_model_or_a_project_that_is_said(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(root / "data")
    backfill.backfill_runs(root)
    assert capsys.readouterr().out.startswith("workspace: no trained model\nHEAD: run ")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="nothing: no DVC project with a Git commit"):
        backfill.backfill_runs(tmp_path / "nothing")
