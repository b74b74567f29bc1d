"""Which model a name, or no name, leads to, and what is known about it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from PIL import Image

from cifar_resnet.errors import UserError
from cifar_resnet.inference import pretrained
from cifar_resnet.registry.load import better_model, find_model

NOT_NEEDED = {"mlflow", "scipy", "sklearn", "pandas", "torchvision", "matplotlib", "dvc", "optuna", "rich", "ruamel"}


@pytest.fixture
def root(project: Path, tmp_path: Path, shipped_pretrained: Path) -> Path:
    """A project with data/model and its evaluation, without a registry; the pretrained weights are tiny."""
    for path in ("data/model", "data/evaluation"):
        shutil.copytree(project / path, tmp_path / path)
    return tmp_path


def set_accuracy(path: Path, accuracy: float) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"accuracy": accuracy}))


def test_without_a_name_the_champion_then_data_model_then_the_pretrained_weights_are_used(
    project: Path, root: Path
) -> None:
    with find_model(project, None) as model:
        assert model.name == "cifar10-resnet version 1"
        assert model.accuracy is not None
    with find_model(root, None) as model:
        assert (model.name, model.folder, model.evaluation) == (
            "data/model",
            *(root / f"data/{name}" for name in ("model", "evaluation")),
        )
    (root / "data/model/model.safetensors").unlink()  # as in a clone without DVC's cache
    with find_model(root, None) as model:
        assert (model.name, model.folder, model.evaluation) == ("pretrained", pretrained.FOLDER, pretrained.FOLDER)
    metrics = json.loads((pretrained.FOLDER / "metrics.json").read_text())
    assert str(model) == f"pretrained (test accuracy {metrics['accuracy']:.2%})"
    with find_model(root, "pretrained") as named:
        assert named == model


def test_an_error_of_mlflow_does_not_mean_that_there_is_no_such_version(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise MlflowException("the database is locked", TEMPORARILY_UNAVAILABLE)

    for method in ("get_model_version", "get_model_version_by_alias"):
        monkeypatch.setattr(MlflowClient, method, refuse)
    with find_model(project, None) as model:
        assert model.name == "data/model"
    assert "the database is locked" in (message := capsys.readouterr().err)
    assert message.endswith("; using data/model instead\n")
    for requested in ("champion", "1"):
        with pytest.raises(UserError, match="the database is locked"), find_model(project, requested):
            pass


def test_the_accuracy_is_unknown_without_an_evaluation_of_the_same_training(root: Path) -> None:
    metrics = root / "data/evaluation/metrics.json"
    for content in (json.dumps(json.loads(metrics.read_text()) | {"mlflow_run": "other"}), "{", "[]", None):
        metrics.unlink() if content is None else metrics.write_text(content)
        with find_model(root, None) as model:
            assert (model.accuracy, model.evaluation) == (None, None)
            assert str(model) == "data/model (test accuracy unknown)"
            assert better_model(root, model) is None


def test_a_better_model_is_the_one_with_a_higher_test_accuracy(project: Path, root: Path) -> None:
    set_accuracy(root / "data/evaluation/metrics.json", 0.2)
    with find_model(root, None) as model:
        better = better_model(root, model)
    assert better is not None
    assert better.name == "pretrained"
    with find_model(root, "pretrained") as model:
        assert better_model(root, model) is None
    set_accuracy(root / "data/evaluation/metrics.json", 1.0)
    with find_model(root, "pretrained") as model:
        better = better_model(root, model)
        assert (None if better is None else better.name) == (None if model.accuracy == 1 else "data/model")
        (root / "data/model/model.safetensors").unlink()
        assert better_model(root, model) is None


def test_a_model_with_other_classes_is_not_better(root: Path) -> None:
    set_accuracy(root / "data/evaluation/metrics.json", 0.2)
    config = root / "data/model/model.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"classes": ["cat", "dog"]}))
    with find_model(root, None) as model:
        assert (model.name, model.accuracy, model.classes) == ("data/model", 0.2, ("cat", "dog"))
        assert better_model(root, model) is None


def test_without_a_registry_the_first_prediction_imports_what_it_needs_only(
    tiny_pretrained: Path, tmp_path: Path
) -> None:
    Image.fromarray(np.full((50, 60, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    code = f"""if True:
        import atexit, sys
        from pathlib import Path
        from cifar_resnet.inference import pretrained
        pretrained.FOLDER = Path({str(tiny_pretrained)!r})
        atexit.register(lambda: print(*sorted({{name.split(".")[0] for name in sys.modules}})))
        from cifar_resnet.cli.main import run_cli
        run_cli()"""
    environment = {key: value for key, value in os.environ.items() if key not in {"MLFLOW_TRACKING_URI", "DVC_ROOT"}}
    done = subprocess.run(
        [sys.executable, "-c", code, "predict", "photo.png"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("predict: 1 image, model: pretrained (test accuracy ")
    prediction, modules = done.stdout.splitlines()
    assert prediction.endswith("  photo.png")
    assert "torch" in modules.split()
    assert NOT_NEEDED.isdisjoint(modules.split())
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]
