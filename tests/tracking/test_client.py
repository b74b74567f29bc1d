import re
import sqlite3
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from mlflow.entities import Run as MlflowRun

from cifar_resnet.data.cifar10 import OFFICIAL_URL
from cifar_resnet.errors import UserError
from cifar_resnet.params.schema import TrackingParams
from cifar_resnet.tracking import run as run_module
from cifar_resnet.tracking.client import connect, get_run, training_run
from cifar_resnet.tracking.run import Run
from cifar_resnet.training.history import EpochRecord


def stored_run(root: Path, run_id: str) -> MlflowRun:
    return connect(root).get_run(run_id)


def start_run(
    root: Path, name: str, scratch: Path | None = None, active: bool = False, **params: bool
) -> AbstractContextManager[Run]:
    values = TrackingParams(**{"enabled": True, "system_metrics": False} | params)
    return training_run(root, name, scratch or root / "data/scratch/abc", values, is_active=lambda _: active)


def test_a_run_holds_what_was_logged_and_ends_finished(tmp_path: Path) -> None:
    with start_run(tmp_path, "first") as run:
        run.log_params({"train": {"epochs": 2}})
        for epoch in (1, 2):
            run.log_metrics({"train_loss": 1.0 / epoch}, step=epoch)
        run.set_tags({"data": "abc"})
        run.log_train_data(OFFICIAL_URL, "abc")
        (tmp_path / "history.csv").write_text("epoch\n1\n")
        run.log_artifact(tmp_path / "history.csv")
    stored = stored_run(tmp_path, run.id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {"train.epochs": "2"}
    assert stored.data.tags["data"] == "abc"
    assert stored.inputs.dataset_inputs[0].dataset.digest == "abc"
    history = run.client.get_metric_history(run.id, "train_loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5)]
    assert (tmp_path / "mlartifacts" / run.id / "artifacts/history.csv").read_text() == "epoch\n1\n"


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (RuntimeError, "FAILED")])
def test_an_exception_sets_the_status(tmp_path: Path, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), start_run(tmp_path, "interrupted") as run:
        raise error
    assert stored_run(tmp_path, run.id).info.status == status


def test_an_interrupted_run_is_continued_and_logs_every_epoch_once(tmp_path: Path) -> None:
    context = start_run(tmp_path, "first")
    interrupted = context.__enter__()
    interrupted.log_epoch({"train_loss": 2.0}, 1)
    context.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    with start_run(tmp_path, "again") as run:
        assert stored_run(tmp_path, run.id).info.status == "RUNNING"
        for epoch, loss in ((1, 2.0), (2, 1.0)):
            run.log_epoch({"train_loss": loss}, epoch)
    assert run.id == interrupted.id
    history = run.client.get_metric_history(run.id, "train_loss")
    assert [(m.step, m.value) for m in history] == [(1, 2.0), (2, 1.0)]
    with start_run(tmp_path, "third") as other:
        assert other.id != run.id, "a finished run is never continued"


@pytest.mark.parametrize(("active", "status"), [(False, "KILLED"), (True, "RUNNING")])
def test_the_next_training_sets_a_run_without_a_process_to_killed(tmp_path: Path, active: bool, status: str) -> None:
    context = start_run(tmp_path, "abandoned")
    abandoned = context.__enter__()
    with start_run(tmp_path, "other", tmp_path / "data/scratch/def", active):
        assert stored_run(tmp_path, abandoned.id).info.status == status


def test_a_temporary_experiment_writes_to_the_projects_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, copy = tmp_path / "project", tmp_path / "copy"
    project.mkdir()
    copy.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.setenv("DVC_EXP_NAME", "puffy-crow")
    with start_run(copy, "temporary", project / "data/scratch/abc") as run:
        pass
    assert stored_run(project, run.id).data.tags["dvc_experiment"] == "puffy-crow"
    assert not list(copy.iterdir())
    with sqlite3.connect(project / "mlflow.db") as database:
        artifacts = database.execute("select artifact_uri from runs").fetchall()
    assert artifacts[0][0].startswith((project / "mlartifacts").as_uri())


def test_results_of_a_run_from_another_database_go_to_a_new_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = {"mlflow_run": "0" * 32, "git_commit": "1" * 40, "dvc_experiment": "wide", "train_data": "2" * 32}
    run = get_run(tmp_path, trained)
    assert run.id != "0" * 32
    tags = stored_run(tmp_path, run.id).data.tags
    assert tags.items() >= {"original_run": "0" * 32, "git_commit": "1" * 40, "dvc_experiment": "wide"}.items()
    assert "params" not in tags  # of the workspace, where it was not trained
    assert "MLflow has no run 000" in capsys.readouterr().out
    assert get_run(tmp_path, {"mlflow_run": run.id}).id == run.id


def test_an_unusable_database_is_reported_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/none.db")
    with pytest.raises(UserError, match="cannot be used"):
        connect(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://me:secret@host/x")
    with pytest.raises(UserError, match="MLflow at nonsense://host/x cannot be used") as raised:
        connect(tmp_path)
    assert "secret" not in str(raised.value)


def record(epoch: int, accuracy: float | None) -> EpochRecord:
    return EpochRecord(epoch, 1.0 / epoch, 0.5, None if accuracy is None else 1.0, accuracy, 0.1, 60.0, 100.0)


def test_best_and_final_accuracy_are_metrics_and_the_description_starts_with_the_result(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(
        '{"accuracy": 0.9366, "accuracy_tta": 0.946, "parameters": 3190442, "mlflow_run": "x", "interval": [0]}'
    )
    with start_run(tmp_path, "first") as run:
        run.log_training_summary([record(1, 0.5), record(2, 0.75), record(3, 0.625)], "To reproduce it: dvc repro")
    evaluated = get_run(tmp_path, {"mlflow_run": run.id})
    evaluated.log_evaluation(tmp_path)
    evaluated.end()
    data = stored_run(tmp_path, run.id).data
    assert data.metrics == {
        "best_epoch": 2,
        "best_validation_accuracy": 0.75,
        "final_validation_accuracy": 0.625,
        "test_accuracy": 0.9366,
        "test_accuracy_tta": 0.946,
        "test_parameters": 3190442,
    }
    assert data.tags["mlflow.note.content"].split("\n\n") == [
        "**93.66%** accuracy on the test set, 94.60% with test-time augmentation; 3,190,442 parameters.",
        "3 epochs in 3.0 min. Validation accuracy: 62.50% (final), 75.00% (best, epoch 2).",
        "To reproduce it: dvc repro",
    ]


def test_without_validation_images_there_is_no_best_epoch(tmp_path: Path) -> None:
    with start_run(tmp_path, "first") as run:
        run.log_training_summary([record(1, None)], "")
    data = stored_run(tmp_path, run.id).data
    assert data.metrics == {}
    assert data.tags["mlflow.note.content"].startswith("1 epochs in 1.0 min.")


@pytest.mark.parametrize("enabled", [True, False])
def test_system_metrics_are_logged_if_enabled(tmp_path: Path, enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "SAMPLE_SECONDS", 0.0)
    with start_run(tmp_path, "sampled", system_metrics=enabled) as run:
        for epoch in (1, 2):
            run.sample_system_metrics()
            run.log_epoch({"train_loss": 1.0}, epoch)
        run.log_epoch({"train_loss": 1.0}, 3)  # without a new sample
    metrics = stored_run(tmp_path, run.id).data.metrics
    assert any(name.startswith("system/") for name in metrics) == enabled
    if enabled:
        history = run.client.get_metric_history(run.id, "system/system_memory_usage_megabytes")
        assert [metric.step for metric in history] == [1, 2]
        assert all(metric.value > 10 for metric in history)


def test_disabled_tracking_writes_nothing(tmp_path: Path) -> None:
    with start_run(tmp_path, "off", enabled=False, system_metrics=True) as run:
        run.log_params({"train": {"epochs": 1}})
        run.sample_system_metrics()
        run.log_epoch({"train_loss": 1.0}, 1)
        run.log_train_data(OFFICIAL_URL, "abc")
        run.log_artifact(tmp_path / "missing.csv")
        run.log_training_summary([record(1, 0.5)], "")
    assert re.fullmatch("[0-9a-f]{32}", run.id), "the id under which a backfill adds the run"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["it's", "100% new", 'a "quoted" one', "under_score"])
def test_a_run_is_continued_in_a_folder_with_special_characters(tmp_path: Path, name: str) -> None:
    scratch, neighbour = tmp_path / name / "data/scratch/abc", tmp_path / name.replace("_", "x") / "data/scratch/abc"
    context = start_run(tmp_path, "first", scratch)
    interrupted = context.__enter__()
    context.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    if neighbour != scratch:
        with start_run(tmp_path, "neighbour", neighbour) as other:
            assert other.id != interrupted.id
    with start_run(tmp_path, "again", scratch) as run:
        assert run.id == interrupted.id


def test_failed_writes_are_kept_and_sent_later_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = tmp_path / "mlartifacts"
    (tmp_path / "history.csv").write_text("epoch\n")
    with start_run(tmp_path, "first") as run:
        run.log_epoch({"train_loss": 3.0}, 1)
        artifacts.touch()  # MLflow needs a folder here
        run.log_artifact(tmp_path / "history.csv")
        run.log_epoch({"train_loss": 2.0}, 2)
        assert len(run.pending) == 2
        assert len(run.client.get_metric_history(run.id, "train_loss")) == 1
        assert capsys.readouterr().out.count("; continuing, metrics are logged later") == 1
        artifacts.unlink()
        run.retry_at = 0.0
        run.log_epoch({"train_loss": 1.0}, 3)
        assert not run.pending
    history = run.client.get_metric_history(run.id, "train_loss")
    assert [(m.step, m.value) for m in history] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert stored_run(tmp_path, run.id).info.status == "FINISHED"


def test_logging_an_epoch_takes_less_than_a_hundredth_of_its_time(tmp_path: Path) -> None:
    with start_run(tmp_path, "first", system_metrics=True) as run:
        values = record(1, 0.5).metrics()
        run.log_epoch(values, 1)
        start = time.process_time()
        for epoch in range(2, 12):
            run.sample_system_metrics()
            run.log_epoch(values, epoch)
        assert (time.process_time() - start) / 10 < 0.28  # the shortest epoch of the default recipe takes 28 s
