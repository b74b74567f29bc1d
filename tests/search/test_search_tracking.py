"""A search without MLflow, with a lost database, and with a server that dies: all trials are logged later."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import write_params
from mlflow import MlflowClient
from test_worker import create_project, mlflow_runs, read_results, run

from cifar_resnet.search import worker
from cifar_resnet.search.study import Study
from cifar_resnet.search.trial import SearchTrial

UNREACHABLE = "http://127.0.0.1:9"  # the port for discarding data, which nobody uses


def test_a_lost_mlflow_database_gets_the_runs_of_all_trials_again(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original_root, root = tmp_path / "original", tmp_path / "project"  # MLflow keeps the original's database open
    create_project(original_root, project, search={"trials": 2, "pruner": "none"})
    assert run(monkeypatch, original_root) == 0
    before = mlflow_runs(original_root)
    shutil.copytree(original_root, root, ignore=shutil.ignore_patterns("mlflow.db*"))
    assert run(monkeypatch, root, "--trials", 3) == 0
    assert "its trials are logged again to a new run" in capsys.readouterr().out
    parent, runs = mlflow_runs(root)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {**before[0].data.metrics, "best_accuracy": parent.data.metrics["best_accuracy"],
                                   "trials": 3}  # fmt: skip
    assert set(runs) == {"trial 0", "trial 1", "trial 2"}
    client = MlflowClient()
    for name, original in before[1].items():
        restored = runs[name]
        assert restored.info.status == "FINISHED"
        assert restored.data.params == original.data.params
        assert restored.data.metrics["validation_accuracy"] == original.data.metrics["validation_accuracy"]
        assert restored.data.metrics.keys() >= {"parameters", "multiply_adds"}
        history = client.get_metric_history(restored.info.run_id, "validation_accuracy")
        assert sorted(metric.step for metric in history) == [1, 2]
    assert run(monkeypatch, root, "--trials", 3) == 0
    assert len(mlflow_runs(root)[1]) == 3


def test_a_search_without_tracking_does_not_use_mlflow_and_is_logged_once_tracking_is_enabled(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = create_project(tmp_path, project, search={"trials": 2}, tracking={"enabled": False})
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
        assert run(patch, root) == 0
    results = read_results(root)
    assert all(result.ended and result.mlflow_run is None for result in results)
    assert not (root / "mlflow.db").exists()
    write_params(root, search={"trials": 2})
    assert run(monkeypatch, root) == 0
    assert read_results(root) == results
    assert {name: run.data.tags["outcome"] for name, run in mlflow_runs(root)[1].items()} == {
        f"trial {result.number}": result.outcome for result in results
    }


def test_a_server_that_dies_between_two_trials_does_not_end_the_search(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = create_project(tmp_path, project, search={"trials": 3, "pruner": "none"})
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

        def run_trial(root: Path, study: Study, trial: SearchTrial, *others: Any) -> None:
            if trial.number == 1:
                patch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
            original(root, study, trial, *others)

        original = worker.run_trial
        patch.setattr(worker, "run_trial", run_trial)
        assert run(patch, root) == 0
    output = capsys.readouterr().out
    assert output.count("cannot be used") == 4  # two trials, the status of the search, its results
    assert "continuing, `make search` logs trial 1 later" in output
    assert "then `make search` logs the results" in output
    assert [result.outcome for result in read_results(root)] == ["finished"] * 3
    parent, runs = mlflow_runs(root)
    assert (parent.info.status, set(runs)) == ("RUNNING", {"trial 0"})
    assert run(monkeypatch, root) == 0
    parent, runs = mlflow_runs(root)
    assert (parent.info.status, set(runs)) == ("FINISHED", {"trial 0", "trial 1", "trial 2"})
