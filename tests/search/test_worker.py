"""Whole searches on the tiny data: what trains, what MLflow shows, what the command says, what becomes of the best."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, tiny_params, write_params
from mlflow import MlflowClient
from test_study import fall_silent

from cifar_resnet.cli import main as command
from cifar_resnet.errors import UserError
from cifar_resnet.files import file_hash
from cifar_resnet.params.file import load_params, with_overrides
from cifar_resnet.search.results import apply_trial, pareto_front, queue_experiments
from cifar_resnet.search.study import Result, Study
from cifar_resnet.tracking.client import EXPERIMENT, connect, create_search_run, create_trial_run

START = [sys.executable, "-m", "cifar_resnet", "search"]


def new(root: Path, project: Path, **sections: dict[str, Any]) -> Path:
    """A project of its own with the tiny data, but for the test images: a search never needs them."""
    shutil.copytree(project / "data/prepared", root / "data/prepared", ignore=shutil.ignore_patterns("test_*"))
    write_params(root, **sections)
    return root


def run(patch: pytest.MonkeyPatch, root: Path, *arguments: object) -> int:
    patch.setattr(sys, "argv", ["cifar_resnet", "search", *map(str, arguments)])
    return command.main(root)


def results(root: Path) -> list[Result]:
    return Study(root, load_params(root / "params.yaml")).results()


def nested(root: Path) -> tuple[Any, dict[str, Any]]:
    """(the search's run, its trials' runs by name)."""
    client = connect(root)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (each for each in runs if "mlflow.parentRunId" not in each.data.tags)
    children = [each for each in runs if each.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len(runs) - 1
    return parent, {each.info.run_name: each for each in children}


def test_a_search_trains_compares_and_shows(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    allowed = {"train.bias_lr": [1.0, 1e38], "train.filter_lr": {"low": 0.05, "high": 0.2, "scale": "log"}}
    root = new(tmp_path, project, search={"trials": 5, "space": allowed})
    assert run(monkeypatch, root) == 0
    printed = capsys.readouterr()
    assert "5/5" in printed.err.splitlines()[-1]
    assert "ETA 0 min" in printed.err.splitlines()[-1]
    assert "dvc exp run -S train.bias_lr=1.0 -S train.filter_lr=0." in printed.out.splitlines()[1]

    found = results(root)
    failed = [each for each in found if each.changes["train.bias_lr"] == 1e38]
    assert 0 < len(failed) < 5
    assert all(each.outcome == "failed" and each.reason.startswith("the loss is nan in epoch") for each in failed)
    assert all(each.outcome in {"finished", "pruned"} for each in found if each not in failed)

    parent, runs = nested(root)
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "search architecture")
    assert set(runs) == {f"trial {number}" for number in range(5)}
    client = MlflowClient()
    for each in found:
        trial = runs[f"trial {each.number}"]
        assert trial.info.status == ("FAILED" if each in failed else "FINISHED")
        assert (trial.data.tags["outcome"], trial.info.run_id) == (each.outcome, each.mlflow_run)
        assert trial.data.params["train.filter_lr"] == str(each.changes["train.filter_lr"])
        curve = client.get_metric_history(trial.info.run_id, "validation_accuracy")
        assert [(metric.step, metric.value) for metric in curve][-1:] == [(2, each.accuracy)][: each.epochs]
    written = {artifact.path for artifact in client.list_artifacts(parent.info.run_id, "search")}
    names = {"history", "parallel_coordinates", "importance", "accuracy_parameters", "accuracy_multiply_adds"}
    assert written == {f"search/{name}.png" for name in names} | {"search/trials.csv"}
    assert run(monkeypatch, root) == 0  # nothing is left to do
    assert results(root) == found

    assert run(monkeypatch, root, "best", "--output", root / "out") == 0
    with (root / "out/trials.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["outcome"] for row in table] == [each.outcome for each in found]
    assert [row["train.filter_lr"] for row in table] == [str(each.changes["train.filter_lr"]) for each in found]


def test_a_search_that_is_stopped_goes_on_with_the_trial_that_was_under_way(project: Path, tmp_path: Path) -> None:
    root = new(tmp_path, project, search={"trials": 2, "epochs": 200, "pruner": "none"})
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    stopped = subprocess.Popen(START, cwd=root, env=environment, stderr=subprocess.PIPE, text=True)
    while not (root / "search.db").exists() or not any(each.epochs for each in results(root)):
        assert stopped.poll() is None
        time.sleep(0.5)
    stopped.send_signal(signal.SIGINT)
    _, said = stopped.communicate()
    assert stopped.returncode == 1
    assert said.splitlines()[-1].endswith(
        "interrupted; the trial under way is put back in line, and the same command goes on"
    )
    assert [each.outcome for each in results(root)] == ["killed", "waiting"]
    parent, runs = nested(root)
    assert (parent.info.status, runs["trial 0"].info.status) == ("KILLED", "KILLED")


def test_the_run_of_a_killed_trial_says_so_even_if_it_had_ended(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = new(tmp_path, project, search={"trials": 1})
    values = load_params(root / "params.yaml")
    study = Study(root, values, file_hash(root / "data/prepared/train_images.npy"))
    trial = study.ask(1)
    assert trial is not None
    study.mlflow_run = create_search_run(root, "search", {})
    lost = create_trial_run(root, "trial 0", study.mlflow_run, {})
    study.set_attribute(trial, "mlflow_run", lost.id)
    lost.end("FINISHED")
    fall_silent(root)
    assert run(monkeypatch, root) == 0
    assert [each.outcome for each in results(root)] == ["killed", "finished"]
    parent, runs = nested(root)
    assert {name: each.info.status for name, each in runs.items()} == {"trial 0": "KILLED", "trial 1": "FINISHED"}
    assert parent.info.status == "FINISHED"


def test_workers_on_one_machine_share_the_trials(project: Path, tmp_path: Path) -> None:
    root = new(tmp_path, project, search={"trials": 6})
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [*START, "--workers", "2"], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = results(root)
    assert all(each.ended for each in found)
    assert len(found) == len({str(each.changes) for each in found}) == 6
    lines = [line for line in done.stderr.splitlines() if line.startswith("trial ")]
    assert len(lines) == 6, "the one on the terminal tells of all"
    assert "broke off" not in done.stderr
    assert "6/6" in (root / "data/scratch/search-worker-2.log").read_text()
    assert nested(root)[0].info.status == "FINISHED"


def test_mistakes_are_told_before_anything_trains(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = new(tmp_path, project, search={"train_per_class": 14})
    with pytest.raises(UserError, match=r"are 14 and 5: together at most 18 allowed, a class's training images"):
        run(monkeypatch, root)
    with pytest.raises(UserError, match=r"there is no architecture in .*run `make search` first"):
        run(monkeypatch, root, "best")
    assert not (root / "search.db").exists()


CHANGES = {
    "model.channels": [8],
    "model.blocks": [2],
    "model.kernels": [3],
    "model.skip_kernels": [3],
    "model.head_pool_kernel": 15,
    "model.activation": "relu",
    "train.filter_lr": 0.1234,
}
FINISHED = Result(7, "finished", 0.7, 2, 1000, 5000, 3.0, CHANGES, "", None, None)


def test_the_best_goes_into_params_and_its_comments_stay(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    before = (tmp_path / "params.yaml").read_text()
    difference = apply_trial(tmp_path, load_params(tmp_path / "params.yaml"), FINISHED)
    assert load_params(tmp_path / "params.yaml") == with_overrides(load_params(ROOT / "params.yaml"), CHANGES)
    after = (tmp_path / "params.yaml").read_text()
    assert "  activation: relu              # silu, gelu or relu\n" in after
    assert "  pool: 15                      # its kernel, in pixels\n" in after
    changed = [line for line in difference.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert (
        len(changed)
        == sum(one != other for one, other in zip(before.splitlines(), after.splitlines(), strict=True))
        == 7
    )


def test_params_in_another_form_are_left_alone(tmp_path: Path) -> None:
    write_params(tmp_path)  # lists over several lines
    before = (tmp_path / "params.yaml").read_text()
    with pytest.raises(UserError, match=r"write them by hand: model.channels=\[8\] model.blocks=\[2\]"):
        apply_trial(tmp_path, tiny_params(), FINISHED)
    assert (tmp_path / "params.yaml").read_text() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_the_best_goes_into_the_queue_of_the_real_dvc(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages:\n  train:\n    cmd: 'true'\n    params: [model, train]\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["git", "init", "-q"], ["dvc", "init", "-q"], ["git", "add", "-A"],
                  ["git", *author, "commit", "-qm", "first"]):  # fmt: skip
        program = [sys.executable, "-m", "dvc", *words[1:]] if words[0] == "dvc" else words
        subprocess.run(program, cwd=tmp_path, check=True)
    queue_experiments(tmp_path, "architecture", [FINISHED])
    status = [sys.executable, "-m", "dvc", "queue", "status"]
    listed = subprocess.run(status, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "architecture-trial-7" in listed.stdout
    shutil.rmtree(tmp_path / ".dvc")
    with pytest.raises(UserError, match=r"trial 7: ERROR: you are not inside of a DVC repository"):
        queue_experiments(tmp_path, "architecture", [FINISHED])


def test_the_front_holds_what_none_beats_in_cost_and_accuracy() -> None:
    assert pareto_front([3, 1, 2, 2, 4], [0.8, 0.5, 0.6, 0.7, 0.8]) == [1, 3, 0]
