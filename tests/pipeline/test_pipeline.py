"""DVC on the official CIFAR-10: repro twice, an experiment, and an experiment in a temporary folder."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import copy_project, dump_yaml, dvc, git

from cifar_resnet.params.file import parse_yaml
from cifar_resnet.tracking.client import connect, experiment_id

pytestmark = pytest.mark.pipeline
TINY = {
    "preprocess": {"validation_per_class": 4900},  # leaves 1,000 training images
    "model": {"channels": [8, 16, 16]},
    "train": {"epochs": 2, "low_resolution_share": 0.5, "batch_size": 100, "bias_lr": 1.0},
}


def copy_project_with_tiny_params(root: Path) -> None:
    copy_project(root)
    values = parse_yaml((root / "params.yaml").read_text(encoding="utf-8"))
    for section, keys in TINY.items():
        values[section] |= keys
    (root / "params.yaml").write_text(dump_yaml(values), encoding="utf-8")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "tiny")


def experiment_metrics(root: Path) -> dict[str, Any]:
    """Name -> metrics of each experiment that `dvc exp show` lists."""
    metrics = {}
    for commit in json.loads(dvc(root, "exp", "show", "--json")):
        for experiment in commit["experiments"] or []:
            data = experiment["revs"][0]["data"]
            metrics[experiment["name"]] = data["metrics"]["data/evaluation/metrics.json"]["data"]
    return metrics


def test_the_pipeline_runs_on_the_official_data(tmp_path: Path) -> None:
    copy_project_with_tiny_params(tmp_path)
    dvc(tmp_path, "repro")
    metrics = json.loads((tmp_path / "data/evaluation/metrics.json").read_text())
    assert metrics["accuracy"] > 0.12  # 1,000 images, 20 steps; chance is 0.10 with a standard deviation of 0.003
    assert sum(1 for _ in (tmp_path / "data/predictions/submission.csv").open()) == 10_001
    assert "Data and pipelines are up to date." in dvc(tmp_path, "repro")
    assert "accuracy_tta" in dvc(tmp_path, "metrics", "show")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "result")

    quick = ("-S", "train.epochs=1", "-S", "evaluate.corruptions=false")
    dvc(tmp_path, "exp", "run", "--name", "in_workspace", *quick, "-S", "model.channels=[8,8,16]")
    dvc(tmp_path, "exp", "run", "--name", "in_copy", "--temp", *quick, "-S", "model.channels=[8,16,8]")
    experiments = experiment_metrics(tmp_path)
    assert set(experiments) == {"in_workspace", "in_copy"}
    assert "accuracy" in dvc(tmp_path, "metrics", "diff", "HEAD")
    dvc(tmp_path, "plots", "diff", "HEAD")
    page = (tmp_path / "dvc_plots/index.html").read_text(encoding="utf-8")
    for plot in parse_yaml((tmp_path / "dvc.yaml").read_text(encoding="utf-8"))["plots"]:
        assert (plot if isinstance(plot, str) else next(iter(plot.values()))["title"]) in page
    assert "docs/results.md says" in page  # the page uses the template .dvc/page.html

    client = connect(tmp_path)
    runs = {run.data.tags.get("dvc_experiment", ""): run for run in client.search_runs([experiment_id(client)])}
    assert set(runs) == {"", "in_workspace", "in_copy"}
    for name, run in runs.items():
        assert run.info.status == "FINISHED"
        assert run.data.metrics["test_accuracy"] == (experiments[name] if name else metrics)["accuracy"]
        artifacts = tmp_path / "mlartifacts" / run.info.run_id / "artifacts"
        assert (artifacts / "evaluation/confusion_matrix.png").stat().st_size > 1000
        assert (artifacts / "history.csv").is_file()
    assert len(client.search_model_versions("name='cifar10-resnet'")) == 3
