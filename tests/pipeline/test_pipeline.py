"""The real dvc on the real CIFAR-10: repro twice, an experiment, and one in a temporary folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, dvc, git

from cifar_resnet.tracking.client import EXPERIMENT, connect

pytestmark = pytest.mark.pipeline
TINY = {
    "preprocess": {"validation_per_class": 4900},  # leaves 1,000 images to train on
    "model": {"channels": [8, 16, 16]},
    "train": {"epochs": 2, "low_resolution_epochs": 1, "batch_size": 100, "bias_lr": 1.0},
}


def copy_of_the_project(root: Path) -> None:
    """The files that git knows, as they are now, in a repository of their own, with tiny params."""
    for name in git(ROOT, "ls-files").splitlines():
        if (ROOT / name).is_file() and name != "dvc.lock":
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    values = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    for section, keys in TINY.items():
        values[section] |= keys
    (root / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    git(root, "init", "--quiet")
    git(root, "config", "user.name", "test")
    git(root, "config", "user.email", "test@localhost")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "tiny")


def experiments(root: Path) -> dict[str, Any]:
    """Name -> metrics of each experiment that `dvc exp show` lists."""
    found = {}
    for commit in json.loads(dvc(root, "exp", "show", "--json")):
        for experiment in commit["experiments"] or []:
            data = experiment["revs"][0]["data"]
            found[experiment["name"]] = data["metrics"]["data/evaluation/metrics.json"]["data"]
    return found


def test_the_pipeline_on_the_real_data(tmp_path: Path) -> None:
    copy_of_the_project(tmp_path)
    dvc(tmp_path, "repro")
    metrics = json.loads((tmp_path / "data/evaluation/metrics.json").read_text())
    assert metrics["accuracy"] > 0.12  # 1,000 images, 20 steps; chance is 0.10 with a deviation of 0.003
    assert sum(1 for _ in (tmp_path / "data/predictions/submission.csv").open()) == 10_001
    assert "Data and pipelines are up to date." in dvc(tmp_path, "repro")
    assert "accuracy_tta" in dvc(tmp_path, "metrics", "show")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "result")

    quick = ("-S", "train.epochs=1", "-S", "evaluate.corruptions=false")
    dvc(tmp_path, "exp", "run", "--name", "here", *quick, "-S", "model.channels=[8,8,16]")
    dvc(tmp_path, "exp", "run", "--name", "there", "--temp", *quick, "-S", "model.channels=[8,16,8]")
    shown = experiments(tmp_path)
    assert set(shown) == {"here", "there"}
    assert "accuracy" in dvc(tmp_path, "metrics", "diff", "HEAD")
    dvc(tmp_path, "plots", "diff", "HEAD")
    page = (tmp_path / "dvc_plots/index.html").read_text(encoding="utf-8")
    for plot in yaml.safe_load((tmp_path / "dvc.yaml").read_text(encoding="utf-8"))["plots"]:
        assert (plot if isinstance(plot, str) else next(iter(plot.values()))["title"]) in page
    assert "docs/metrics.md says" in page  # the page is ours, not DVC's bare one

    client = connect(tmp_path)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = {run.data.tags.get("dvc_experiment", ""): run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"", "here", "there"}
    for name, run in runs.items():
        assert run.info.status == "FINISHED"
        assert run.data.metrics["test_accuracy"] == (shown[name] if name else metrics)["accuracy"]
        kept = tmp_path / "mlartifacts" / run.info.run_id / "artifacts"
        assert (kept / "evaluation/figures/confusion_matrix.png").stat().st_size > 1000
        assert (kept / "history.csv").is_file()
    assert len(client.search_model_versions("name='cifar10-resnet'")) == 3
