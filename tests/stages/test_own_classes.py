"""All stages from train on for classes of unequal size, and what uses their results."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
from conftest import rows, stage, tiny, tiny_images, write_params

from cifar_resnet.data.dataset import Images, write_split
from cifar_resnet.data.split import dataset_statistics
from cifar_resnet.files import read_json, write_json
from cifar_resnet.inference.backend import load_classifier
from cifar_resnet.inference.onnx_export import export_model
from cifar_resnet.registry.load import better_model, find_model
from cifar_resnet.tracking.client import connect

NAMES = ("owl", "=cow", "a $ b $")
SIZES = {"train": (60, 30, 20), "validation": (6, 3, 2), "test": (30, 15, 5)}  # images of a class


def own_images(sizes: tuple[int, ...], seed: int) -> Images:
    images = tiny_images(max(sizes), seed)
    kept = [np.flatnonzero(images.labels == label)[:size] for label, size in enumerate(sizes)]
    return images.take(np.sort(np.concatenate(kept)))


@pytest.fixture(scope="module", params=[2, 3])
def own(request: pytest.FixtureRequest, project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose pictures have two or three classes and must not be mirrored, trained from another model."""
    root, num_classes = tmp_path_factory.mktemp("own"), request.param
    splits = {name: own_images(sizes[:num_classes], seed) for seed, (name, sizes) in enumerate(SIZES.items())}
    for name, images in splits.items():
        write_split(root / "data/prepared", name, images)
    statistics = dataset_statistics(splits, classes=NAMES[:num_classes], source="pictures/photos")
    write_json(root / "data/prepared/statistics.json", statistics)
    train = {"init": str(project / "data/model"), "flip": "none"}
    write_params(root, train=train, register={"model_name": "own-images", "min_accuracy": 0.1})
    with pytest.MonkeyPatch.context() as patch:
        tiny(patch)
        for name in ("train", "evaluate", "register", "predict"):
            stage(name).main(root)
    return root


def classes_of(root: Path) -> list[str]:
    classes: list[str] = read_json(root / "data/prepared/statistics.json")["classes"]
    return classes


def test_the_model_has_the_classes_and_views_of_the_data(own: Path) -> None:
    config = read_json(own / "data/model/model.json")
    assert config["classes"] == classes_of(own)
    assert config["mirror_views"] is False
    assert np.load(own / "data/evaluation/logits.npy").shape == (2, len(rows(own / "data/evaluation/predictions.csv")),
                                                                  len(classes_of(own)))  # fmt: skip


def test_balanced_accuracy_is_the_mean_of_the_classes_which_have_intervals(own: Path) -> None:
    metrics, scores = read_json(own / "data/evaluation/metrics.json"), rows(own / "data/evaluation/class_scores.csv")
    assert [row["class"] for row in scores] == classes_of(own)
    recalls = [float(row["recall"]) for row in scores]
    assert metrics["balanced_accuracy"] == pytest.approx(np.mean(recalls), abs=1e-6)
    assert 0 <= metrics["balanced_accuracy_tta"] <= 1
    assert all(float(row["recall_low"]) <= float(row["recall"]) <= float(row["recall_high"]) for row in scores)
    assert ("top2_accuracy" in metrics) == (len(scores) > 2)


def test_no_name_says_that_the_data_are_cifar_10(own: Path) -> None:
    card = (own / "data/registry/model-card.md").read_text(encoding="utf-8")
    assert "CIFAR" not in card
    assert "`photos` (" in card
    client = connect(own)
    assert "CIFAR" not in client.get_registered_model("own-images").description
    run = client.get_run(read_json(own / "data/model/model.json")["provenance"]["mlflow_run"])
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, json.loads(data.dataset.source)) == ("photos train", {"uri": "pictures/photos"})


@pytest.mark.usefixtures("shipped_pretrained")
def test_the_champion_predicts_and_serves_the_classes_and_no_other_model_is_called_better(own: Path) -> None:
    decision = read_json(own / "data/registry/decision.json")
    assert (decision["model_name"], decision["champion"]) == ("own-images", True)
    assert json.loads(json.loads(connect(own).get_model_version("own-images", "1").tags["evidence"])["classes"]) == (
        classes_of(own)
    )
    with find_model(own, None) as model:
        assert model.name == "own-images version 1"
        assert model.classes == tuple(classes_of(own))
        assert load_classifier(model.folder).classes == model.classes
        assert better_model(own, model) is None
    pixels = np.load(own / "data/prepared/test_images.npy", allow_pickle=False)
    served = mlflow.pyfunc.load_model("models:/own-images@champion")
    predictions = served.predict(pixels.transpose(0, 2, 3, 1))
    assert {len(prediction["probabilities"]) for prediction in predictions} == {len(classes_of(own))}
    assert {row["class_name"] for row in rows(own / "data/predictions/predictions.csv")} <= set(classes_of(own))


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_an_export_has_the_classes(own: Path, tmp_path: Path, precision: str) -> None:
    export_model(own / "data/model", tmp_path / "a.onnx", precision=precision, root=own)  # type: ignore[arg-type]
    classifier = load_classifier(tmp_path / "a.onnx")
    assert classifier.classes == tuple(classes_of(own))
    pixels = np.load(own / "data/prepared/test_images.npy", allow_pickle=False)
    probabilities = classifier.probabilities(pixels, batch_size=16)
    assert probabilities.shape == (len(pixels), len(classes_of(own)))
    assert np.allclose(probabilities.sum(axis=1), 1)
