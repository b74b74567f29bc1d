import sqlite3
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from mlflow.entities import Run as MlflowRun

from cifar_resnet import tracking
from cifar_resnet.errors import UserError


def stored(root: Path, run_id: str) -> MlflowRun:
    return tracking.connect(root).get_run(run_id)


def training_run(
    root: Path, name: str, scratch: Path | None = None, alive: bool = False
) -> AbstractContextManager[tracking.Run]:
    return tracking.training_run(root, name, scratch or root / "data/scratch/abc", alive=lambda _: alive)


def test_a_run_holds_what_was_logged_and_ends_finished(tmp_path: Path) -> None:
    with training_run(tmp_path, "first") as run:
        run.params({"train": {"epochs": 2}})
        for epoch in (1, 2):
            run.metrics({"train_loss": 1.0 / epoch}, step=epoch)
        run.tags({"data": "abc"})
        run.dataset("CIFAR-10 train", "abc", "https://example.org/cifar.tar.gz")
        (tmp_path / "history.csv").write_text("epoch\n1\n")
        run.artifact(tmp_path / "history.csv")
    found = stored(tmp_path, run.id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"train.epochs": "2"}
    assert found.data.tags["data"] == "abc"
    assert found.inputs.dataset_inputs[0].dataset.digest == "abc"
    history = run.client.get_metric_history(run.id, "train_loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5)]
    assert (tmp_path / "mlartifacts" / run.id / "artifacts/history.csv").read_text() == "epoch\n1\n"


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (RuntimeError, "FAILED")])
def test_a_run_that_breaks_off_says_so(tmp_path: Path, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), training_run(tmp_path, "broken") as run:
        raise error
    assert stored(tmp_path, run.id).info.status == status


def test_a_run_that_broke_off_goes_on_without_doubles(tmp_path: Path) -> None:
    interrupted = training_run(tmp_path, "first")
    broken = interrupted.__enter__()
    broken.epoch({"train_loss": 2.0}, 1)
    interrupted.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    with training_run(tmp_path, "again") as run:
        assert stored(tmp_path, run.id).info.status == "RUNNING"
        for epoch, loss in ((1, 2.0), (2, 1.0)):
            run.epoch({"train_loss": loss}, epoch)
    assert run.id == broken.id
    history = run.client.get_metric_history(run.id, "train_loss")
    assert [(m.step, m.value) for m in history] == [(1, 2.0), (2, 1.0)]
    with training_run(tmp_path, "third") as other:
        assert other.id != run.id, "a finished run is never taken up again"


@pytest.mark.parametrize(("alive", "status"), [(False, "KILLED"), (True, "RUNNING")])
def test_the_next_training_mends_a_run_that_nobody_runs(tmp_path: Path, alive: bool, status: str) -> None:
    broken = training_run(tmp_path, "abandoned")
    abandoned = broken.__enter__()
    with training_run(tmp_path, "other", tmp_path / "data/scratch/def", alive):
        assert stored(tmp_path, abandoned.id).info.status == status


def test_a_temporary_experiment_writes_to_the_projects_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, copy = tmp_path / "project", tmp_path / "copy"
    project.mkdir()
    copy.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.setenv("DVC_EXP_NAME", "puffy-crow")
    with training_run(copy, "temporary", project / "data/scratch/abc") as run:
        pass
    assert stored(project, run.id).data.tags["dvc_experiment"] == "puffy-crow"
    assert not list(copy.iterdir())
    with sqlite3.connect(project / "mlflow.db") as database:
        artifacts = database.execute("select artifact_uri from runs").fetchall()
    assert artifacts[0][0].startswith((project / "mlartifacts").as_uri())


def test_results_of_a_run_unknown_here_go_to_a_new_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tracking.run_of(tmp_path, "0" * 32)
    assert run.id != "0" * 32
    assert "MLflow has no run 000" in capsys.readouterr().out
    assert tracking.run_of(tmp_path, run.id).id == run.id


def test_a_database_that_cannot_be_used_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////dev/null/none.db")
    with pytest.raises(UserError, match="cannot be used"):
        tracking.connect(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://me:secret@host/x")
    with pytest.raises(UserError, match="MLflow at nonsense://host/x cannot be used") as caught:
        tracking.connect(tmp_path)
    assert "secret" not in str(caught.value)
