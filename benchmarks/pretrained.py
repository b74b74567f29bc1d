"""Write the pretrained weights: `make pretrained MODEL=data/model`, or another `data/model` folder with its evaluation
and model card beside it.

Filters and the last layer's weights are stored in half precision. The network with these weights is evaluated once on
the test set. Its figures replace those of the float32 network, which the evaluation of MODEL has. Needs data/prepared.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import cifar_resnet.environment_variables  # noqa: F401, before torch
from cifar_resnet.data.dataset import read_split
from cifar_resnet.device import disable_malloc_trim, select_device, select_dtype
from cifar_resnet.errors import UserError, run
from cifar_resnet.evaluation.metrics import reliability
from cifar_resnet.evaluation.report import compute_metrics, write_csv_table
from cifar_resnet.files import file_hash, read_json, write_json
from cifar_resnet.inference import pretrained
from cifar_resnet.inference.logits import softmax
from cifar_resnet.inference.predictor import predict_logits
from cifar_resnet.inference.uncertainty import METRICS_FILE, RELIABILITY_FILE
from cifar_resnet.models.saved_model import WEIGHTS_FILE, fitted_temperature, load_model, save_model
from cifar_resnet.registry.card import CARD_FILE
from cifar_resnet.registry.load import NamedModel, find_model

PREPARED = "data/prepared"
MAX_BYTES = 11_000_000  # of the folder
MAX_CHANGE = 0.001  # of the accuracy, against float32
BATCH_SIZE = 1000


def main(root: Path) -> None:
    disable_malloc_trim()
    size = write_pretrained(root, sys.argv[1], pretrained.FOLDER)
    print(f"pretrained: {size / 1e6:.1f} MB -> {pretrained.FOLDER}")


def write_pretrained(root: Path, name: str, folder: Path) -> int:
    """Replace the content of `folder` by the model and its evaluation; returns the size in bytes.

    Raises:
        UserError: if the model is not suitable, or the files have more than MAX_BYTES.
    """
    with find_model(root, name) as source, tempfile.TemporaryDirectory() as scratch:
        write_half_precision(source, Path(scratch), test_data=file_hash(root / PREPARED / "test_images.npy"))
        write_evaluation(root, source, Path(scratch))
        contents = {path.name: path.read_bytes() for path in Path(scratch).iterdir()}
    size = sum(map(len, contents.values()))
    if size > MAX_BYTES:
        raise UserError(f"{name}: the files have {size:,} bytes, at most {MAX_BYTES:,} are allowed")
    folder.mkdir(exist_ok=True)
    for path in filter(Path.is_file, folder.iterdir()):
        path.unlink()
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    return size


def write_half_precision(source: NamedModel, folder: Path, *, test_data: str) -> None:
    """Write weights and config; parameters of two or more dimensions in float16, all others unchanged.

    Raises:
        UserError: if the model has no fitted temperatures.
    """
    model, config = load_model(source.folder, select_device("cpu"))
    if fitted_temperature(config, augmented=False) == fitted_temperature(config, augmented=True) == 1:
        raise UserError(f"{source.name}: its temperatures are not fitted; train it with a hold-out (preprocess:)")
    for parameter in model.parameters():
        parameter.data = parameter.half() if parameter.ndim > 1 else parameter
    float32_weights = file_hash(source.folder / WEIGHTS_FILE)
    config["provenance"] |= {"test_data": test_data, "float32_weights": float32_weights}
    save_model(folder, model, config)


def write_evaluation(root: Path, source: NamedModel, folder: Path) -> None:
    """Evaluate the network in `folder` on the test set; write metrics, reliability table, predictions, model card.

    Raises:
        UserError: if the model has no evaluation or card, or an accuracy changes by more than MAX_CHANGE.
    """
    if source.evaluation is None:
        raise UserError(f"{source.name}: no metrics.json of this model is known; run `dvc repro evaluate`")
    card = source.evaluation.parent / "registry" / CARD_FILE
    if not card.exists():
        raise UserError(f"{source.name}: {card} not found; run `dvc repro register` and name the folder data/model")
    target = select_device()
    model, config = load_model(folder, target)
    test, precision = read_split(root / PREPARED, "test"), select_dtype("auto", target)[0]
    plain, augmented = (
        predict_logits(model, test.pixels, batch_size=BATCH_SIZE, precision=precision, augmented=augmented).numpy()
        for augmented in (False, True)
    )
    temperature, temperature_tta = (fitted_temperature(config, augmented=augmented) for augmented in (False, True))
    metrics = compute_metrics(test.labels, plain, augmented, temperature=temperature, temperature_tta=temperature_tta)
    before = read_json(source.evaluation / METRICS_FILE)
    for name in ("accuracy", "accuracy_tta"):
        print(f"pretrained: {name} {before[name]:.2%} in float32, {metrics[name]:.2%} in half precision", flush=True)
        if abs(metrics[name] - before[name]) > MAX_CHANGE + 1e-9:
            raise UserError(f"{source.name}: half precision changes {name} by more than {100 * MAX_CHANGE:.1f} points")
    probabilities = softmax(plain, temperature)
    write_json(folder / METRICS_FILE, before | metrics | {"model_bytes": (folder / WEIGHTS_FILE).stat().st_size})
    write_csv_table(folder / RELIABILITY_FILE, reliability(test.labels, probabilities))
    pretrained.write_test_predictions(folder, test.labels, probabilities)
    shutil.copy(card, folder)


if __name__ == "__main__":
    run(main, "pretrained")
