"""The weights that come with the package, and the script that writes them."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import ROOT, load_script
from safetensors.torch import load_file

from cifar_resnet.data.dataset import read_split
from cifar_resnet.device import select_device, select_dtype
from cifar_resnet.errors import UserError
from cifar_resnet.evaluation.significance import read_correct_mask
from cifar_resnet.inference import pretrained
from cifar_resnet.inference.predictor import predict_logits
from cifar_resnet.models.saved_model import load_model

PREPARED = ROOT / "data/prepared"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("benchmarks/pretrained.py")


@pytest.fixture
def root(project: Path, tmp_path: Path) -> Path:
    """The test images, the model and its evaluation, in a folder that a test may change."""
    for path in ("data/model", "data/evaluation", "data/registry"):
        shutil.copytree(project / path, tmp_path / path)
    (tmp_path / "data/prepared").mkdir()
    for path in ("data/prepared/test_images.npy", "data/prepared/test_labels.npy"):
        (tmp_path / path).symlink_to(project / path)
    return tmp_path


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_filters_are_stored_in_half_precision_and_all_else_as_it_was(project: Path, tiny_pretrained: Path) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (project / "data/model", tiny_pretrained))
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value) or (after[name].dtype, name[-6:]) == (torch.float16, "weight")
        torch.testing.assert_close(after[name].to(value.dtype), value, rtol=5e-4, atol=1e-6)
    model, config = load_model(tiny_pretrained, select_device("cpu"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert config["provenance"].keys() >= {"mlflow_run", "train_data", "test_data", "float32_weights"}


def test_the_folder_has_the_evaluation_and_the_predictions_of_every_test_image(
    project: Path, tiny_pretrained: Path
) -> None:
    metrics, before = (
        json.loads((folder / "metrics.json").read_text()) for folder in (tiny_pretrained, project / "data/evaluation")
    )
    assert metrics.keys() == before.keys()
    assert metrics["mean_corruption_accuracy"] == before["mean_corruption_accuracy"]
    assert metrics["model_bytes"] == (tiny_pretrained / "model.safetensors").stat().st_size < before["model_bytes"]
    labels, predicted, confidence = pretrained.read_test_predictions(tiny_pretrained)
    assert np.mean(labels == predicted) == metrics["accuracy"]
    assert np.array_equal(labels == predicted, read_correct_mask(project / "data/evaluation/predictions.csv"))
    assert ((confidence > 0.1) & (confidence <= 1)).all()
    assert (tiny_pretrained / "reliability.csv").read_text().startswith("confidence,accuracy,")


@pytest.mark.parametrize(("classes", "dtype"), [(10, np.uint8), (256, np.uint8), (300, np.uint16)])
def test_predictions_of_many_classes_are_read_as_they_were_written(classes: int, dtype: type, tmp_path: Path) -> None:
    last = classes - 1
    pretrained.write_test_predictions(tmp_path, np.array([last, 0]), np.eye(classes)[[last, 1]])
    with np.load(tmp_path / pretrained.PREDICTIONS_FILE) as arrays:
        assert arrays["labels"].dtype == arrays["predicted"].dtype == dtype
    labels, predicted, _ = pretrained.read_test_predictions(tmp_path)
    assert labels.tolist() == [last, 0]
    assert predicted.tolist() == [last, 1]


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("evaluation/metrics.json", {"accuracy": 0.123}, "half precision changes accuracy by more than 0.1 points"),
        ("evaluation/metrics.json", {"mlflow_run": "other"}, "no metrics.json of this model is known"),
        ("model/model.json", {"temperature": 1, "temperature_tta": 1}, "its temperatures are not fitted"),
    ],
)
def test_an_unsuitable_model_is_refused(
    script: ModuleType, root: Path, file: str, values: dict[str, object], message: str
) -> None:
    change_json(root / "data" / file, **values)
    with pytest.raises(UserError, match=f"^data/model: {message}"):
        script.write_pretrained(root, "data/model", root / "out")
    assert not (root / "out").exists()


def test_the_size_is_limited_and_old_files_are_removed_but_not_folders(
    script: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "out/examples").mkdir(parents=True)
    (root / "out/old.safetensors").touch()
    size = script.write_pretrained(root, "data/model", root / "out")
    assert size == sum(path.stat().st_size for path in (root / "out").iterdir() if path.is_file())
    assert (root / "out/examples").is_dir()
    assert not (root / "out/old.safetensors").exists()
    monkeypatch.setattr(script, "MAX_BYTES", size - 1)
    with pytest.raises(UserError, match=r"at most .* are allowed"):
        script.write_pretrained(root, "data/model", root / "out")


def test_the_shipped_weights_have_at_most_eleven_megabytes() -> None:
    names = {path.name for path in pretrained.FOLDER.iterdir() if path.is_file()}
    assert names == {
        *("model.safetensors", "model.json", "model-card.md"),
        *("metrics.json", "reliability.csv", "predictions.npz"),
    }
    assert sum(path.stat().st_size for path in pretrained.FOLDER.rglob("*.*")) <= 11_000_000


@pytest.mark.pipeline
@pytest.mark.skipif(not (PREPARED / "test_images.npy").exists(), reason="`dvc repro preprocess` writes the test images")
def test_the_shipped_weights_have_the_documented_accuracy_on_the_test_set() -> None:
    target = select_device()
    model, _ = load_model(pretrained.FOLDER, target)
    test, precision = read_split(PREPARED, "test"), select_dtype("auto", target)[0]
    logits = predict_logits(model, test.pixels, batch_size=1000, precision=precision).numpy()
    accuracy = float((logits.argmax(axis=1) == test.labels).mean())
    metrics = json.loads((pretrained.FOLDER / "metrics.json").read_text())
    assert accuracy == pytest.approx(metrics["accuracy"], abs=0.0015)  # bfloat16 and float32 round differently
