"""Complete searches on the tiny data: training, MLflow runs, output of the command, use of the best trials."""

import csv
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_params, write_params
from mlflow import MlflowClient
from optuna.exceptions import StorageInternalError
from test_study import age_heartbeats

from cifar_resnet.cli import main as command
from cifar_resnet.data.dataset import Images
from cifar_resnet.errors import UserError
from cifar_resnet.files import file_hash
from cifar_resnet.models.saved_model import load_model, save_model
from cifar_resnet.params.file import load_params, with_overrides
from cifar_resnet.search import worker
from cifar_resnet.search.results import apply_trial, pareto_front, queue_experiments
from cifar_resnet.search.study import Study
from cifar_resnet.search.train_trial import load_search_data, search_split
from cifar_resnet.search.trial import TrialResult
from cifar_resnet.search.worker import run_search, worker_processes
from cifar_resnet.tracking.client import EXPERIMENT, connect
from cifar_resnet.tracking.search_runs import create_trial_run, find_or_create_search_run

START = [sys.executable, "-m", "cifar_resnet", "search"]


def create_project(root: Path, project: Path, **sections: dict[str, Any]) -> Path:
    """A project with the tiny data except for the test images, which a search does not need."""
    shutil.copytree(project / "data/prepared", root / "data/prepared", ignore=shutil.ignore_patterns("test_*"))
    write_params(root, **sections)
    return root


def run(patch: pytest.MonkeyPatch, root: Path, *arguments: object) -> int:
    patch.setattr(sys, "argv", ["cifar_resnet", "search", *map(str, arguments)])
    return command.main(root)


def read_results(root: Path) -> list[TrialResult]:
    return Study(root, load_params(root / "params.yaml")).results()


def mlflow_runs(root: Path) -> tuple[Any, dict[str, Any]]:
    """(the search's run, its trials' runs by name)."""
    client = connect(root)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len(runs) - 1
    return parent, {run.info.run_name: run for run in children}


def test_a_search_trains_its_trials_and_logs_them_to_mlflow(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    space = {"train.bias_lr": [1.0, 1e38], "train.filter_lr": {"low": 0.05, "high": 0.2, "scale": "log"}}
    root = create_project(tmp_path, project, search={"trials": 5, "space": space})
    assert run(monkeypatch, root) == 0
    printed = capsys.readouterr()
    assert "5/5" in printed.err.splitlines()[-1]
    assert "ETA 0 min" in printed.err.splitlines()[-1]
    assert "dvc exp run -S train.bias_lr=1.0 -S train.filter_lr=0." in printed.out.splitlines()[1]

    results = read_results(root)
    failed = [result for result in results if result.overrides["train.bias_lr"] == 1e38]
    assert 0 < len(failed) < 5
    assert all(result.outcome == "failed" and result.reason.startswith("the loss is nan in epoch") for result in failed)
    assert all(result.outcome in {"finished", "pruned"} for result in results if result not in failed)

    parent, runs = mlflow_runs(root)
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "search architecture")
    assert set(runs) == {f"trial {number}" for number in range(5)}
    client = MlflowClient()
    for result in results:
        trial_run = runs[f"trial {result.number}"]
        assert trial_run.info.status == ("FAILED" if result in failed else "FINISHED")
        assert (trial_run.data.tags["outcome"], trial_run.info.run_id) == (result.outcome, result.mlflow_run)
        assert trial_run.data.params["train.filter_lr"] == str(result.overrides["train.filter_lr"])
        curve = client.get_metric_history(trial_run.info.run_id, "validation_accuracy")
        assert [(metric.step, metric.value) for metric in curve][-1:] == [(2, result.accuracy)][: result.epochs]
    artifacts = {artifact.path for artifact in client.list_artifacts(parent.info.run_id, "search")}
    names = {"history", "parallel_coordinates", "importance", "accuracy_parameters", "accuracy_multiply_adds"}
    assert artifacts == {f"search/{name}.png" for name in names} | {"search/trials.csv"}
    assert run(monkeypatch, root) == 0  # trains nothing
    assert read_results(root) == results

    assert run(monkeypatch, root, "best", "--output", root / "out") == 0
    with (root / "out/trials.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["outcome"] for row in table] == [result.outcome for result in results]
    assert [row["train.filter_lr"] for row in table] == [str(result.overrides["train.filter_lr"]) for result in results]


def test_a_database_that_fails_between_two_trials_ends_the_search_with_one_line(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_table(*_: object) -> None:
        with closing(sqlite3.connect(root / "search.db")) as database, database:
            database.execute("drop table trials")

    root = create_project(tmp_path, project, search={"trials": 2}, tracking={"enabled": False})
    monkeypatch.setattr("cifar_resnet.search.worker.run_trial", lose_the_table)
    with pytest.raises(UserError, match=r"search.storage: .*/search.db cannot be used .*; fix this and run the same"):
        run(monkeypatch, root)


def test_a_study_that_started_from_other_weights_of_the_same_name_is_not_continued(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(project / "data/model", tmp_path / "start")
    train = {"init": str(tmp_path / "start")}
    search = {"trials": 1, "space": {"train.filter_lr": [0.1, 0.2]}}
    root = create_project(tmp_path, project, search=search, train=train, tracking={"enabled": False})
    run(monkeypatch, root)
    model, config = load_model(tmp_path / "start", torch.device("cpu"))
    torch.nn.init.zeros_(model.head.bias)
    torch.nn.init.ones_(model.head.weight)
    save_model(tmp_path / "start", model, config)
    with pytest.raises(UserError, match=r"was created with other values of training images;"):
        run(monkeypatch, root)


def test_a_database_that_fails_while_results_are_logged_is_one_line(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StorageInternalError("lost")

    root = create_project(tmp_path, project, search={"trials": 1})
    monkeypatch.setattr("cifar_resnet.search.report.log_missing_trials", fail)
    with pytest.raises(UserError, match=r"search.storage: .*/search.db cannot be used \(lost\)"):
        run(monkeypatch, root)


def test_sigint_queues_the_running_trial_again(project: Path, tmp_path: Path) -> None:
    root = create_project(tmp_path, project, search={"trials": 2, "epochs": 200, "pruner": "none"})
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(START, cwd=root, env=environment, stderr=subprocess.PIPE, text=True)
    while not (root / "search.db").exists() or not any(result.epochs for result in read_results(root)):
        assert process.poll() is None
        time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 1
    assert stderr.splitlines()[-1].endswith(
        "interrupted; the running trial is queued again; run the same command to continue"
    )
    assert [result.outcome for result in read_results(root)] == ["killed", "waiting"]
    parent, runs = mlflow_runs(root)
    assert (parent.info.status, runs["trial 0"].info.status) == ("KILLED", "KILLED")


def test_the_run_of_a_killed_trial_is_killed_even_if_it_had_ended(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = create_project(tmp_path, project, search={"trials": 1})
    params = load_params(root / "params.yaml")
    study = Study(root, params, (file_hash(root / "data/prepared/train_images.npy"), 10))
    trial = study.ask(1)
    assert trial is not None
    study.mlflow_run = find_or_create_search_run(root, None, "search", {})
    lost = create_trial_run(root, 0, study.mlflow_run)
    trial.optuna_trial.set_user_attr("mlflow_run", lost.id)
    lost.end("FINISHED")
    age_heartbeats(root)
    assert run(monkeypatch, root) == 0
    assert [result.outcome for result in read_results(root)] == ["killed", "finished"]
    parent, runs = mlflow_runs(root)
    assert {name: run.info.status for name, run in runs.items()} == {"trial 0": "KILLED", "trial 1": "FINISHED"}
    assert parent.info.status == "FINISHED"


def test_workers_on_one_machine_share_the_trials(project: Path, tmp_path: Path) -> None:
    root = create_project(tmp_path, project, search={"trials": 6})
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [*START, "--workers", "2"], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = read_results(root)
    assert all(result.ended for result in results)
    assert len(results) == len({str(result.overrides) for result in results}) == 6
    lines = [line for line in done.stderr.splitlines() if line.startswith("trial ")]
    assert len(lines) == 6, "the worker on the terminal reports the trials of both"
    assert "failed, see" not in done.stderr
    assert "6/6" in (root / "data/scratch/search-worker-2.log").read_text()
    assert mlflow_runs(root)[0].info.status == "FINISHED"


def test_mistakes_are_errors_before_anything_trains(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = create_project(tmp_path, project, search={"train_per_class": 14})
    with pytest.raises(UserError, match=r"are 14 and 5: together at most 18 allowed, a class's training images"):
        run(monkeypatch, root)
    with pytest.raises(UserError, match=r"there is no study architecture in .*run `make search` first"):
        run(monkeypatch, root, "best")
    assert not (root / "search.db").exists()
    shutil.rmtree(root / "data")
    with pytest.raises(UserError, match=r"/statistics.json: not found; run `dvc repro preprocess`$"):
        run(monkeypatch, root)


OVERRIDES = {
    "model.channels": [8],
    "model.blocks": [2],
    "model.kernels": [3],
    "model.skip_kernels": [3],
    "model.head_pool_kernel": 15,
    "model.activation": "relu",
    "train.filter_lr": 0.1234,
}
FINISHED = TrialResult(7, "finished", 0.7, 2, 1000, 5000, 3.0, OVERRIDES, "", None, None)


def test_apply_keeps_the_comments_of_params(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    before = (tmp_path / "params.yaml").read_text()
    difference = apply_trial(tmp_path, load_params(tmp_path / "params.yaml"), FINISHED)
    assert load_params(tmp_path / "params.yaml") == with_overrides(load_params(ROOT / "params.yaml"), OVERRIDES)
    after = (tmp_path / "params.yaml").read_text()
    assert comments(after) == comments(before)
    changed = [line for line in difference.splitlines() if line.startswith("+") and not line.startswith("+++")]
    pairs = zip(before.splitlines(), after.splitlines(), strict=True)
    assert len(changed) == sum(old != new for old, new in pairs) == 7


def test_apply_keeps_the_line_ends_of_params(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8", newline="\r\n")
    apply_trial(tmp_path, load_params(tmp_path / "params.yaml"), FINISHED)
    content = (tmp_path / "params.yaml").read_bytes()
    assert b"epochs" in content
    assert content.count(b"\n") == content.count(b"\r\n") == len(text.splitlines())


def comments(text: str) -> list[tuple[int, str]]:
    """(column, comment) of every line."""
    return [(line.find("#"), line.partition("#")[2]) for line in text.splitlines()]


def test_a_search_of_the_training_starts_from_the_weights_of_train_init(project: Path, tmp_path: Path) -> None:
    space = {"train.filter_lr": {"low": 0.05, "high": 0.2, "scale": "log"}}
    root = create_project(tmp_path, project, train={"init": str(project / "data/model")}, search={"space": space})
    params = load_params(root / "params.yaml")
    data = load_search_data(root, params)
    assert data.initial is not None
    study = run_search(root, with_overrides(params, {"tracking.enabled": False}), limit=1, minutes=10)
    assert [result.outcome for result in study.results()] == ["finished"]


def test_a_search_of_the_network_from_other_weights_is_refused_in_one_line(project: Path, tmp_path: Path) -> None:
    root = create_project(tmp_path, project, train={"init": "pretrained"})
    message = (
        r"^params.yaml: train.init is pretrained, but search.space changes the network \(model.layers, model.channels, "
        r"model.blocks, model.head_pool_kernel\): set train.init to none, or search values of train only$"
    )
    with pytest.raises(UserError, match=message):
        load_search_data(root, load_params(root / "params.yaml"))


def test_apply_works_on_params_in_block_style(tmp_path: Path) -> None:
    write_params(tmp_path)  # a list item per line, as an in-place `dvc exp run -S` writes params.yaml
    before = (tmp_path / "params.yaml").read_text()
    assert "\n  channels:\n  - 8\n  - 16\n" in before
    apply_trial(tmp_path, tiny_params(), FINISHED)
    assert load_params(tmp_path / "params.yaml") == with_overrides(tiny_params(), OVERRIDES)
    after = (tmp_path / "params.yaml").read_text()
    assert "\n  channels:\n  - 8\n" in after
    assert len(list(tmp_path.iterdir())) == 1


def test_a_trial_whose_keys_are_unknown_is_not_applied(tmp_path: Path) -> None:
    write_params(tmp_path)
    before = (tmp_path / "params.yaml").read_text()
    older = TrialResult(7, "finished", 0.7, 2, 1000, 5000, 3.0, {"model.pool": 4}, "", None, None)
    with pytest.raises(UserError, match=r"trial 7 does not fit the other values; edit by hand: model.pool=4"):
        apply_trial(tmp_path, tiny_params(), older)
    assert (tmp_path / "params.yaml").read_text() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_the_best_trials_go_into_the_queue_of_the_real_dvc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages:\n  train:\n    cmd: 'true'\n    params: [model, train]\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["git", "init", "-q"], ["dvc", "init", "-q"], ["git", "add", "-A"],
                  ["git", *author, "commit", "-qm", "first"]):  # fmt: skip
        program = [sys.executable, "-m", "dvc", *words[1:]] if words[0] == "dvc" else words
        subprocess.run(program, cwd=tmp_path, check=True)
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True)
    head = done.stdout.strip()
    assert queue_experiments(tmp_path, "architecture", [FINISHED]) == 1
    status = [sys.executable, "-m", "dvc", "queue", "status"]
    listed = subprocess.run(status, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "architecture-trial-7" in listed.stdout
    params = (tmp_path / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(params.replace("dataset: cifar10", "dataset: folder"))
    (tmp_path / "data/own").mkdir(parents=True)
    with pytest.raises(UserError, match=r"download.folder is data/own, which neither Git nor DVC tracks"):
        queue_experiments(tmp_path, "architecture", [FINISHED])
    (tmp_path / "params.yaml").write_text(params)
    reference = f"refs/exps/{head[:2]}/{head[2:]}/architecture-trial-7"
    subprocess.run(["git", "update-ref", reference, head], cwd=tmp_path, check=True)
    assert queue_experiments(tmp_path, "architecture", [FINISHED]) == 0
    assert "experiment architecture-trial-7 exists already, so trial 7 is not queued" in capsys.readouterr().out
    shutil.rmtree(tmp_path / ".dvc")
    with pytest.raises(UserError, match=r"trial 7: ERROR: you are not inside of a DVC repository"):
        queue_experiments(tmp_path, "architecture", [FINISHED])


def test_the_pareto_front_holds_the_points_that_no_other_dominates() -> None:
    assert pareto_front([3, 1, 2, 2, 4], [0.8, 0.5, 0.6, 0.7, 0.8]) == [1, 3, 0]


def test_a_trial_has_the_same_number_of_images_of_every_class_also_of_unequal_classes() -> None:
    labels = np.repeat([0, 1], [20, 200])
    images = Images(np.random.default_rng(0).integers(0, 256, (220, 3, 32, 32), np.uint8), labels)
    for per_class in (3, 5):  # 15 + 5 is all of the smaller class
        params = tiny_params(search={"train_per_class": 15, "validation_per_class": per_class}).search
        train, validation = search_split(images, {"classes": ["a", "b"]}, params)
        assert np.bincount(train.labels).tolist() == [15, 15]
        assert np.bincount(validation.labels).tolist() == [per_class] * 2
        assert len(np.unique(np.concatenate([train.pixels, validation.pixels]), axis=0)) == 30 + 2 * per_class


def test_workers_end_with_the_block_also_if_the_last_wait_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals, waits = [], []

    class Worker:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def wait(self) -> int:
            waits.append(self)
            if len(waits) == 1:
                raise KeyboardInterrupt
            return 0

        def send_signal(self, number: int) -> None:
            signals.append(number)

    monkeypatch.setattr(subprocess, "Popen", Worker)
    threads = torch.get_num_threads()
    try:
        with pytest.raises(KeyboardInterrupt), worker_processes(tmp_path, 3, 1, 1.0):
            pass
    finally:
        torch.set_num_threads(threads)
    assert signals == [signal.SIGINT] * 2
    assert len(waits) == 3


def test_the_runs_of_failed_trials_are_closed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = TrialResult(7, "failed", None, 2, 1000, 5000, 3.0, OVERRIDES, "", None, "run")
    study = SimpleNamespace(params=tiny_params(), ask=lambda _: "trial", results=lambda: [failed])
    reporter, closed, calls = SimpleNamespace(deadline=time.monotonic() + 60, limit=1), set[str](), []
    monkeypatch.setattr(worker, "set_run_status", lambda *arguments, **_: calls.append(arguments))
    for _ in range(3):
        worker.next_trial(Path(), study, reporter, Event(), closed)  # type: ignore[arg-type]
    assert len(calls) == 1
