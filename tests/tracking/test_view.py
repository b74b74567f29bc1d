"""The tags of the experiment, by which MLflow shows its menu for training and the saved view of the run table."""

import json
from pathlib import Path

import pytest
from conftest import ROOT
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from cifar_resnet.tracking.client import EXPERIMENT, connect
from cifar_resnet.tracking.run import prefixed_test_metrics
from cifar_resnet.tracking.view import EXPERIMENT_TAGS, VIEW


def tags(client: MlflowClient) -> dict[str, str]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return dict(experiment.tags)


def test_a_new_experiment_and_one_without_tags_get_the_tags(tmp_path: Path) -> None:
    client = connect(tmp_path)
    assert tags(client) == EXPERIMENT_TAGS
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    client.delete_experiment_tag(experiment.experiment_id, "mlflow.experimentKind")
    client.set_experiment_tag(experiment.experiment_id, f"mlflow.sharedViewState.{VIEW}", "of an earlier version")
    client.set_experiment_tag(experiment.experiment_id, "team", "vision")
    assert tags(connect(tmp_path)) == EXPERIMENT_TAGS | {"team": "vision"}


def test_an_experiment_whose_tags_cannot_be_written_is_used_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(tmp_path)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    client.delete_experiment_tag(experiment.experiment_id, "mlflow.experimentKind")

    def refuse(*_: object) -> None:
        raise MlflowException("permission denied")

    monkeypatch.setattr(MlflowClient, "set_experiment_tag", refuse)
    assert "mlflow.experimentKind" not in tags(connect(tmp_path))


def test_the_view_sorts_by_test_accuracy_and_its_metrics_are_those_of_evaluate() -> None:
    state = json.loads(json.loads(EXPERIMENT_TAGS[f"mlflow.sharedViewState.{VIEW}"])["state"])
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`test_accuracy`", False)
    assert set(state["selectedColumns"]) < set(state["columnOrder"]) == set(state["columnWidths"])
    metrics = prefixed_test_metrics(ROOT / "data/evaluation")
    shown = {column.split("`")[1] for column in state["selectedColumns"] if column.startswith("metrics.")}
    assert shown <= metrics.keys()
