"""Every way to run the pipeline logs to one MLflow database, and a clone restores it; run by `make test-services`."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from conftest import copy_project, dump_yaml, dvc, git, tiny, tiny_values
from mlflow.entities import Run

from cifar_resnet.params.file import parse_yaml
from cifar_resnet.tracking import backfill
from cifar_resnet.tracking.client import connect, experiment_id

pytestmark = pytest.mark.services
QUEUE_SECONDS = 3600
STAGES = ("train", "evaluate", "register")
ARRAYS = [f"{part}_{kind}.npy" for part in ("train", "validation", "test") for kind in ("images", "labels")]


def start(root: Path, *arguments: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.Popen(arguments, cwd=root, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def trained(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("it's 100% mine")  # characters that need quoting
    with pytest.MonkeyPatch.context() as patch:
        tiny(patch)
        run_in_every_way(root, project / "data/prepared")
    return root


def run_in_every_way(root: Path, prepared: Path) -> None:
    """Make `root` a project with the stages from train to register on the tiny data, and train in it."""
    copy_project(root, without=("tests/",))
    pipeline = parse_yaml((root / "dvc.yaml").read_text(encoding="utf-8"))
    pipeline["stages"] = {name: pipeline["stages"][name] for name in STAGES}
    (root / "dvc.yaml").write_text(dump_yaml(pipeline), encoding="utf-8")
    values = tiny_values(evaluate={"corruptions": False}, register={"min_accuracy": 0.0})
    (root / "params.yaml").write_text(dump_yaml(values), encoding="utf-8")
    shutil.copytree(prepared, root / "data/prepared")
    dvc(root, "add", "--quiet", *(f"data/prepared/{name}" for name in ARRAYS))
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "start")
    dvc(root, "repro")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "result")

    dvc(root, "exp", "run", "--name", "queued", "--queue", "-S", "train.seed=1")
    dvc(root, "queue", "start", "-j", "1")
    temporary = start(root, sys.executable, "-m", "dvc", "exp", "run", "-n", "in_copy", "--temp", "-S", "train.seed=3")
    assert temporary.stdout is not None
    while "Running stage 'train'" not in (line := temporary.stdout.readline()):  # until then DVC locks the workspace
        assert line, temporary.wait()
    dvc(root, "exp", "run", "--name", "in_workspace", "-S", "train.seed=4", "-S", "train.epochs=2")
    output, _ = temporary.communicate()
    assert temporary.returncode == 0, output
    without_dvc = start(root, "sh", "-c", "PYTHONPATH=src python stages/train.py")
    output, _ = without_dvc.communicate()
    assert without_dvc.returncode == 0, output
    end = time.monotonic() + QUEUE_SECONDS
    while "queued" not in git(root, "for-each-ref", "--format=%(refname)", "refs/exps"):
        assert time.monotonic() < end, dvc(root, "queue", "logs", "queued")
        time.sleep(5)
    dvc(root, "queue", "stop")
    git(root, "checkout", "--quiet", "params.yaml", "dvc.lock", "data")  # discard what the last training wrote
    dvc(root, "checkout", "--quiet")


def runs_of(root: Path) -> dict[str, Run]:
    """Runs by the name of their DVC experiment; "" is the run of `dvc repro`. Skips the run without DVC."""
    client = connect(root)
    runs = client.search_runs([experiment_id(client)], order_by=["attributes.start_time DESC"])
    return {run.data.tags.get("dvc_experiment", ""): run for run in runs}


def experiment_metrics(root: Path) -> dict[str, dict[str, Any]]:
    """Name -> metrics of HEAD (as "") and of each experiment that `dvc exp show` lists."""
    _, head = json.loads(dvc(root, "exp", "show", "--json"))
    revisions = {experiment["name"]: experiment["revs"][0] for experiment in head["experiments"]} | {"": head}
    data = {name: revision["data"] for name, revision in revisions.items()}
    return {name: values["metrics"]["data/evaluation/metrics.json"]["data"] for name, values in data.items()}


def test_every_way_to_run_logs_to_the_same_database(trained: Path) -> None:
    client = connect(trained)
    runs = client.search_runs([experiment_id(client)])
    assert [run.info.status for run in runs] == ["FINISHED"] * 5
    names = [run.data.tags.get("dvc_experiment", "") for run in runs]
    assert sorted(names) == ["", "", "in_copy", "in_workspace", "queued"]
    pixels = np.load(trained / "data/prepared/test_images.npy", allow_pickle=False).transpose(0, 2, 3, 1)
    versions = client.search_model_versions("name='cifar10-resnet'")
    assert {version.run_id for version in versions} == {
        run.info.run_id for run in runs if "test_accuracy" in run.data.metrics
    }
    assert len(versions) == 4
    for version in versions:
        assert len(mlflow.pyfunc.load_model(f"models:/cifar10-resnet/{version.version}").predict(pixels)) == len(pixels)
    for name, metrics in experiment_metrics(trained).items():
        run = client.get_run(metrics["mlflow_run"])  # `dvc exp show` names the run, and the run the experiment
        assert run.data.tags.get("dvc_experiment", "") == name
        assert run.data.metrics["test_accuracy"] == metrics["accuracy"]
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train_loss")]
        assert steps == list(range(1, 3 if name == "in_workspace" else 4))
        figures = client.list_artifacts(run.info.run_id, "evaluation")
        assert len(figures) == len(list((trained / "data/evaluation/figures").glob("*.png")))
    run = client.get_run(experiment_metrics(trained)["in_workspace"]["mlflow_run"])
    assert run.info.run_name == "train.seed=4, train.epochs=2"
    commit = git(trained, "rev-parse", "HEAD").strip()
    assert (
        f"git checkout {commit}\ndvc exp run -S train.seed=4 -S train.epochs=2\n"
        in run.data.tags["mlflow.note.content"]
    )
    assert "Besides" not in run.data.tags["mlflow.note.content"]


def test_a_clone_restores_results_and_runs_without_training(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bare, remote, clone = tmp_path / "origin.git", tmp_path / "remote", tmp_path / "clone"
    git(tmp_path, "init", "--quiet", "--bare", str(bare))
    git(trained, "remote", "add", "origin", str(bare))
    dvc(trained, "remote", "add", "--default", "shared", str(remote))
    git(trained, "commit", "--quiet", "--all", "--message", "remote")
    git(trained, "push", "--quiet", "origin", "HEAD")
    dvc(trained, "push", "--quiet")
    dvc(trained, "exp", "push", "--quiet", "--all-commits", "origin")

    git(tmp_path, "clone", "--quiet", str(bare), str(clone))
    dvc(clone, "pull", "--quiet")
    dvc(clone, "exp", "pull", "--quiet", "--all-commits", "origin")
    assert "Data and pipelines are up to date." in dvc(clone, "status")
    weights = "data/model/model.safetensors"
    assert (clone / weights).read_bytes() == (trained / weights).read_bytes()
    before = runs_of(trained)
    originals = {run.info.run_id: run for run in before.values()}
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it
    backfill.backfill_runs(clone)
    assert capsys.readouterr().out.count("added") == 4
    after = runs_of(clone)
    assert set(after) == set(before)
    for name, run in after.items():
        original = originals[run.data.tags["original_run"]]
        assert run.info.run_name == original.info.run_name
        assert run.info.status == "FINISHED"
        assert run.data.params == original.data.params
        names = {key for key in original.data.metrics if not key.startswith("system/")}
        assert {key: run.data.metrics[key] for key in names} == pytest.approx(
            {key: original.data.metrics[key] for key in names}, abs=1e-6
        )  # history.csv has six decimals
        for tag in (
            "model",
            "train_data",
            "params",
            "git_commit",
            "git_dirty",
            "dvc_experiment",
            "dvc_baseline",
            "mlflow.note.content",
        ):
            assert run.data.tags.get(tag) == original.data.tags.get(tag), (name, tag)
        digests = [dataset_input.dataset.digest for dataset_input in run.inputs.dataset_inputs]
        assert digests == [dataset_input.dataset.digest for dataset_input in original.inputs.dataset_inputs]
    backfill.backfill_runs(clone)
    assert "backfill: 4 runs, 4 already complete" in capsys.readouterr().out
