"""The Python interface: cifar_resnet.load, Model and __version__."""

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_images

import cifar_resnet
from cifar_resnet.cli.main import main
from cifar_resnet.data.cifar10 import CLASSES
from cifar_resnet.errors import UserError
from cifar_resnet.inference.model import Model, Predictions

PIXELS = tiny_images(1, seed=3).pixels


@pytest.fixture(scope="module")
def model(project: Path) -> Model:
    return cifar_resnet.load(str(project / "data/model"), device="cpu")


def command_predictions(root: Path, folder: Path, *arguments: str) -> tuple[list[int], np.ndarray]:  # type: ignore[type-arg]
    """(labels, probabilities (N, 10)) that `cifar-resnet predict` writes, rounded to six digits."""
    np.save(folder / "images.npy", PIXELS)
    output = folder / "predictions.json"
    command = ["cifar-resnet", "predict", str(folder / "images.npy"), "--top", "10", "--format", "json", *arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*command, "--output", str(output)])
        assert main(root) == 0
    images = [image["classes"] for image in json.loads(output.read_text())]
    by_label = [{entry["label"]: entry["confidence"] for entry in classes} for classes in images]
    return (
        [classes[0]["label"] for classes in images],
        np.array([[confidences[label] for label in range(10)] for confidences in by_label]),
    )


def assert_equal_predictions(predictions: Predictions, labels: list[int], probabilities: np.ndarray) -> None:  # type: ignore[type-arg]
    assert predictions.labels.tolist() == labels
    assert predictions.class_names == [CLASSES[label] for label in labels]
    assert np.array_equal(predictions.probabilities.round(6), probabilities)


def test_the_import_is_light_and_leaves_the_environment_alone() -> None:
    code = """if True:
        import os, sys
        before = dict(os.environ)
        import cifar_resnet
        assert dict(os.environ) == before
        print(*sorted({"torch", "mlflow", "numpy"} & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_the_version_is_that_of_the_package() -> None:
    assert cifar_resnet.__version__ == version("cifar-resnet")
    assert cifar_resnet.Model is Model
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        cifar_resnet.nothing  # noqa: B018


@pytest.mark.parametrize(
    "source", ["data/model", "data/model/model.safetensors", "1", "models:/cifar10-resnet@champion"]
)
def test_a_named_model_predicts_what_the_command_predicts(
    project: Path, tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    predictions = cifar_resnet.load(source).predict(PIXELS)
    assert_equal_predictions(predictions, *command_predictions(project, tmp_path, "--model", source))


def test_the_default_model_is_the_champion_then_data_model_then_the_pretrained_weights(
    project: Path,
    tmp_path: Path,
    shipped_pretrained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        champion = cifar_resnet.load()
    assert repr(champion) == f"Model('cifar10-resnet version 1', accuracy={champion.accuracy})"
    assert f"cifar_resnet.load: cifar10-resnet version 1 (test accuracy {champion.accuracy:.2%})\n" in (
        capsys.readouterr().err
    )
    registered = champion.predict(PIXELS)
    assert_equal_predictions(registered, *command_predictions(project, tmp_path, "--model", "champion"))
    root = tmp_path / "root"
    shutil.copytree(project / "data/model", root / "data/model")
    config = json.loads((root / "data/model/model.json").read_text())
    (root / "data/model/model.json").write_text(json.dumps(config | {"temperature_tta": 3.0}))
    monkeypatch.chdir(root)
    saved = cifar_resnet.load().predict(PIXELS)
    assert_equal_predictions(saved, *command_predictions(root, tmp_path))
    assert saved.probabilities.max(axis=1).mean() < registered.probabilities.max(axis=1).mean()
    (root / "data/model/model.safetensors").unlink()
    shipped = cifar_resnet.load()
    assert shipped.name == "pretrained"
    assert "cifar_resnet.load: pretrained (test accuracy " in capsys.readouterr().err
    assert_equal_predictions(shipped.predict(PIXELS), *command_predictions(root, tmp_path))
    assert not (root / "mlflow.db").exists()


@pytest.mark.parametrize("source", ["7", "champoin", "data/modle", "models:/cifar10-resnet@nobody"])
def test_an_unknown_name_is_a_user_error(project: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    with pytest.raises(UserError, match=source):
        cifar_resnet.load(source)


def test_a_path_object_is_a_source(project: Path) -> None:
    assert cifar_resnet.load(project / "data/model", device="cpu").classes == list(CLASSES)


@pytest.mark.parametrize("source", ["models:/cifar10-resnet@champion", "runs:/1/model", "champion"])
@pytest.mark.parametrize("uri", ["", "sqlite:///mlflow.db", "sqlite:///deep/mlflow.db"])
def test_loading_without_a_database_creates_nothing(
    tmp_path: Path, source: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=f"model {source} not found"):
        cifar_resnet.load(source)
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_an_unknown_device_is_a_user_error(project: Path) -> None:
    with pytest.raises(UserError, match="device tpu is not available"):
        cifar_resnet.load(str(project / "data/model"), device="tpu")  # type: ignore[arg-type]


def test_both_layouts_and_any_memory_order_give_the_same_predictions(model: Model) -> None:
    expected = model.predict(PIXELS)
    read_only = PIXELS.copy()
    read_only.flags.writeable = False
    for images in (PIXELS.transpose(0, 2, 3, 1), np.asfortranarray(PIXELS), PIXELS[::-1].copy()[::-1], read_only):
        predictions = model.predict(images)
        assert predictions.labels.tolist() == expected.labels.tolist()
        assert np.array_equal(predictions.probabilities, expected.probabilities)
    assert expected.labels.dtype == np.int64
    np.testing.assert_allclose(expected.probabilities.sum(axis=1), 1, rtol=1e-12)


def test_no_images_give_no_predictions(model: Model) -> None:
    for shape in ((0, 32, 32, 3), (0, 3, 32, 32)):
        predictions = model.predict(np.empty(shape, np.uint8))
        assert (predictions.labels.shape, predictions.labels.dtype) == ((0,), np.int64)
        assert predictions.class_names == []
        assert predictions.probabilities.shape == (0, 10)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 3, 32, 32), np.float32),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((2, 32, 32), np.uint8),
        np.zeros((2, 1, 32, 32), np.uint8),
        np.zeros((2, 3, 64, 64), np.uint8),
        np.zeros((2, 32, 3, 32), np.uint8),
    ],
)
def test_images_of_another_type_or_shape_are_a_value_error(model: Model, images: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=r"uint8 \(N, 32, 32, 3\) or \(N, 3, 32, 32\) needed"):
        model.predict(images)
