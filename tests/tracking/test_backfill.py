"""Backfill of MLflow from DVC's files, in a small Git and DVC project with one result and one experiment."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import dump_yaml, tiny_values, write_params
from dvc.repo import Repo
from mlflow import MlflowClient
from mlflow.entities import Run

from cifar_resnet.cli import main as command
from cifar_resnet.errors import UserError
from cifar_resnet.files import file_hash, write_json
from cifar_resnet.tracking import backfill
from cifar_resnet.tracking.client import connect, create_run, experiment_id, get_run
from cifar_resnet.training.history import EpochRecord, write_history

IDS = {"result": "a" * 32, "longer": "b" * 32}


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    done = subprocess.run(["git", *identity, *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def write_result(root: Path, run_id: str, epochs: int, **source: str) -> None:
    """Write the outputs of train and evaluate that MLflow shows."""
    history = [
        EpochRecord(epoch, 2.0 / epoch, 0.5, 1.0, epoch / 10, 0.1, 30.0, 100.0) for epoch in range(1, epochs + 1)
    ]
    write_history(root / backfill.HISTORY, history)
    provenance = {"mlflow_run": run_id, "train_data": "d" * 32, "seconds": 30.0 * epochs, **source}
    write_json(root / backfill.CONFIG, {"provenance": provenance})
    write_json(root / backfill.STATISTICS, {"source": "https://example.org/cifar.tar.gz"})
    metrics = {"accuracy": epochs / 10, "accuracy_tta": 0.5, "parameters": 7, "mlflow_run": run_id, "interval": [0, 1]}
    write_json(root / backfill.EVALUATION / "metrics.json", metrics)
    (root / backfill.EVALUATION / "confusion_matrix.png").write_bytes(b"a figure")
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
    write_result(root, IDS["result"], 3, git_commit=commit, git_dirty="false")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "result")
    write_result(root, IDS["longer"], 4, git_commit=commit, git_dirty="true", dvc_experiment="longer")
    with Repo(str(root)) as repo:
        repo.experiments.save(name="longer")
    git(root, "reset", "--quiet", "--hard")
    return root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "project"))


def database_content(client: MlflowClient) -> dict[str, Any]:
    """Everything that MLflow shows, by the id that a run had where it was trained."""
    runs: list[Run] = client.search_runs([experiment_id(client)])
    return {
        run.data.tags.get("original_run", run.info.run_id): {
            "info": dict(run.info),
            "data": (run.data.params, run.data.metrics, run.data.tags),
            "history": {
                name: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, name))
                for name in run.data.metrics
            },
            "artifacts": sorted(artifact.path for artifact in client.list_artifacts(run.info.run_id)),
            "figures": sorted(artifact.path for artifact in client.list_artifacts(run.info.run_id, "evaluation")),
            "datasets": [dataset_input.dataset.digest for dataset_input in run.inputs.dataset_inputs],
        }
        for run in runs
    }


def test_a_new_database_gets_the_workspace_and_every_experiment_once(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backfill.backfill_runs(root)
    output = capsys.readouterr().out
    assert output.count("added") == 2
    assert "workspace: run" in output
    assert "longer: run" in output
    client = connect(root)
    runs = database_content(client)
    assert set(runs) == set(IDS.values())
    for run_id, epochs in zip(IDS.values(), (3, 4), strict=True):
        run = runs[run_id]
        params, metrics, tags = run["data"]
        assert run["info"]["status"] == "FINISHED"
        assert run["info"]["end_time"] - run["info"]["start_time"] == 30_000 * epochs
        assert params["train.epochs"] == str(epochs)
        assert params["train.warmup_epochs"] == "0.0"  # as the train stage logs it
        assert run["history"]["train_loss"] == [(step, round(2 / step, 6)) for step in range(1, epochs + 1)]
        assert metrics["test_accuracy"] == metrics["best_validation_accuracy"] == epochs / 10
        assert run["artifacts"] == ["evaluation", "history.csv"]
        assert run["figures"] == ["evaluation/confusion_matrix.png"]
        assert run["datasets"] == [tags["train_data"]] == ["d" * 32]
    (first, second) = (runs[run_id] for run_id in IDS.values())
    assert first["info"]["run_name"].startswith("seed 0, 3 epochs")
    assert second["info"]["run_name"] == "longer: epochs=4"
    commit = first["data"][2]["git_commit"]
    assert f"git checkout {commit}\ndvc repro\n" in first["data"][2]["mlflow.note.content"]
    assert f"git checkout {commit}\ndvc exp run -S train.epochs=4\n" in second["data"][2]["mlflow.note.content"]
    assert second["data"][2]["dvc_experiment"] == "longer"

    backfill.backfill_runs(root)
    assert "backfill: 2 runs, 2 already complete" in capsys.readouterr().out
    assert database_content(client) == runs
    copy = get_run(root, {"mlflow_run": IDS["longer"]})  # the run to which evaluate and register write
    assert copy.tags["original_run"] == IDS["longer"]


@pytest.mark.parametrize("content", ["<<<<<<< HEAD\n", '{"provenance": {}}'])
@pytest.mark.parametrize("file", [backfill.CONFIG, backfill.HISTORY, backfill.METRICS, backfill.STATISTICS])
def test_a_damaged_revision_is_named_and_all_others_are_added(
    root: Path, capsys: pytest.CaptureFixture[str], file: str, content: str
) -> None:
    for name in backfill.REGISTER_INPUTS:
        (root / name).touch()
    (root / file).write_text(content)
    with pytest.raises(UserError, match=r"the files of workspace are damaged, see above; all others were added"):
        backfill.backfill_runs(root)
    output = capsys.readouterr().out
    assert f"workspace: {file} is damaged (" in output
    assert "longer: run" in output
    assert set(database_content(connect(root))) == set(IDS.values())  # that of the workspace is in HEAD as well


def test_a_run_has_the_params_of_its_training_not_those_of_a_later_commit(root: Path) -> None:
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("epochs: 3", "epochs: 7").replace("ema_decay", "renamed"))
    git(root, "commit", "--quiet", "--all", "--message", "other values, a renamed key")
    backfill.backfill_runs(root)
    params, _, tags = database_content(connect(root))[IDS["result"]]["data"]
    assert (params["train.epochs"], params["train.ema_decay"]) == ("3", "0.5")
    assert "\ndvc repro\n" in tags["mlflow.note.content"]


def test_a_run_has_the_params_of_its_training_not_those_edited_since(root: Path) -> None:
    write_result(root, "c" * 32, 5, git_commit="")  # not committed
    output = {"path": backfill.CONFIG, "md5": file_hash(root / backfill.CONFIG)}
    params = {"params.yaml": {"train": tiny_values(train={"epochs": 5})["train"]}}
    (root / "dvc.lock").write_text(dump_yaml({"stages": {"train": {"params": params, "outs": [output]}}}))
    write_params(root, train={"epochs": 7})
    backfill.backfill_runs(root)
    assert database_content(connect(root))["c" * 32]["data"][0]["train.epochs"] == "5"


def test_an_incomplete_run_is_completed_in_place(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = connect(root)
    incomplete = create_run(client, "incomplete", {})
    client.log_metric(incomplete, "train_loss", 2.0, step=1)
    client.log_param(incomplete, "train.epochs", "3")
    write_result(root, incomplete, 3, git_commit="")
    backfill.backfill_runs(root)
    output = capsys.readouterr().out
    assert f"workspace: run {incomplete}: added 2 epochs, summary, test results, figures" in output
    runs = database_content(client)
    assert set(runs) == {incomplete, *IDS.values()}
    assert runs[incomplete]["info"]["status"] == "FINISHED"
    assert [step for step, _ in runs[incomplete]["history"]["train_loss"]] == [1, 2, 3]
    backfill.backfill_runs(root)
    assert database_content(client) == runs


def test_a_deleted_run_is_restored_and_new_test_results_are_added(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backfill.backfill_runs(root)
    client = connect(root)
    before = database_content(client)
    client.delete_run(get_run(root, {"mlflow_run": IDS["result"]}).id)
    (root / "data/evaluation/metrics.json").write_text('{"accuracy": 0.9, "accuracy_tta": 0.5, "parameters": 7}')
    monkeypatch.setattr(sys, "argv", ["cifar_resnet", "backfill"])
    assert command.main(root) == 0
    after = database_content(client)
    assert set(after) == set(before)
    assert after[IDS["result"]]["data"][1]["test_accuracy"] == 0.9
    assert "**90.00%** accuracy on the test set" in after[IDS["result"]]["data"][2]["mlflow.note.content"]


def test_a_missing_model_or_project_is_reported(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(root / "data")
    backfill.backfill_runs(root)
    assert capsys.readouterr().out.startswith("workspace: no trained model\nHEAD: run ")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no DVC project with a Git commit"):
        backfill.backfill_runs(tmp_path / "empty")


def test_outside_of_the_project_the_command_creates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cifar_resnet", "backfill"])
    with pytest.raises(UserError, match=r"^params.yaml: not found in .*; run from the project's root$"):
        command.main(tmp_path)
    assert not list(tmp_path.iterdir())


def test_lost_artifacts_are_restored(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backfill.backfill_runs(root)
    client = connect(root)
    before = database_content(client)
    shutil.rmtree(root / "mlartifacts")
    backfill.backfill_runs(root)
    assert "added summary, figures" in capsys.readouterr().out
    after = database_content(client)
    assert {run_id: (run["artifacts"], run["figures"]) for run_id, run in after.items()} == {
        run_id: (run["artifacts"], run["figures"]) for run_id, run in before.items()
    }
    experiment = client.get_experiment(experiment_id(client))
    assert experiment.artifact_location == (root / "mlartifacts").as_uri()


def test_the_printed_advice_names_missing_inputs_of_register(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "run `dvc repro --force --single-item register`"
    for path in backfill.REGISTER_INPUTS:
        (root / path).touch()
    assert backfill.registry_advice(root).endswith(command)
    (root / backfill.WEIGHTS).unlink()
    backfill.backfill_runs(root)
    assert f"run `dvc repro evaluate`, because {backfill.WEIGHTS} is missing, then" in capsys.readouterr().out


def test_a_run_that_mlflow_has_removed_for_good_is_added_again(root: Path) -> None:
    backfill.backfill_runs(root)
    client = connect(root)
    before = database_content(client)
    copy = get_run(root, {"mlflow_run": IDS["result"]}).id
    client.delete_run(copy)
    command_line = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", client.tracking_uri, "--run-ids", copy]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": client.tracking_uri}
    subprocess.run(command_line, env=environment, check=True, capture_output=True)
    backfill.backfill_runs(root)
    after = database_content(client)
    assert set(after) == set(before)
    assert after[IDS["result"]]["info"]["run_id"] != copy
    assert after[IDS["result"]]["artifacts"] == before[IDS["result"]]["artifacts"]


def test_an_evaluation_of_another_training_is_not_added(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After `dvc repro train`, data/evaluation is of the network before."""
    metrics, trained = (root / backfill.METRICS).read_text(), "c" * 32
    write_result(root, trained, 5, git_commit="")
    (root / backfill.METRICS).write_text(metrics)
    for path in backfill.REGISTER_INPUTS:
        (root / path).touch()
    backfill.backfill_runs(root)
    runs = database_content(connect(root))
    assert "test_accuracy" not in runs[trained]["data"][1]
    assert runs[trained]["figures"] == []
    assert runs[IDS["result"]]["data"][1]["test_accuracy"] == 0.3
    advice = "run `dvc repro evaluate`, because data/evaluation is of another training, then `dvc repro --force"
    assert advice in capsys.readouterr().out


def test_test_results_that_only_the_commit_has_are_added(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(root / backfill.EVALUATION)
    backfill.backfill_runs(root)
    assert "HEAD: run " in (output := capsys.readouterr().out)
    assert "added test results, figures" in output
    assert database_content(connect(root))[IDS["result"]]["data"][1]["test_accuracy"] == 0.3
    backfill.backfill_runs(root)
    assert "backfill: 2 runs, 2 already complete" in capsys.readouterr().out
