"""data/model + data/prepared (test, validation) -> evaluate -> data/evaluation: metrics, tables, figures, logits."""

from functools import partial
from pathlib import Path
from textwrap import shorten

import numpy as np

import cifar_resnet.environment_variables  # noqa: F401
from cifar_resnet.data.dataset import read_split, write_array
from cifar_resnet.device import disable_malloc_trim, select_device, select_dtype
from cifar_resnet.errors import UserError, run
from cifar_resnet.evaluation.latency import measure_latency
from cifar_resnet.evaluation.plots import write_figure
from cifar_resnet.evaluation.report import (
    compute_metrics,
    compute_tables,
    corruption_metrics,
    plot_all,
    plot_training,
    summary_lines,
    write_csv_table,
)
from cifar_resnet.files import file_hash, read_object, write_json
from cifar_resnet.inference.familiarity import fit_familiarity_threshold
from cifar_resnet.inference.logits import softmax
from cifar_resnet.inference.predictor import predict_logits
from cifar_resnet.models.resnet import multiply_adds, num_parameters
from cifar_resnet.models.saved_model import CONFIG_FILE, WEIGHTS_FILE, fitted_temperature, load_model
from cifar_resnet.params.file import load_params
from cifar_resnet.tracking.client import get_run_or_null
from cifar_resnet.training.history import read_history
from cifar_resnet.versioning.inputs import read_inputs, require_unchanged

PREPARED = "data/prepared"
MODEL = "data/model"
EVALUATION = "data/evaluation"


def main(root: Path) -> None:
    disable_malloc_trim()
    inputs, params = read_inputs(root, "evaluate"), load_params(root / "params.yaml")
    target = select_device()
    precision, _ = select_dtype("auto", target)
    model, config = load_model(root / MODEL, target)
    provenance = read_object(root / MODEL / CONFIG_FILE, "provenance")["provenance"]
    test, classes = read_split(root / PREPARED, "test"), tuple(config["classes"])
    require_same_classes(root, classes)
    history = read_history(root / MODEL / "history.csv")
    batch_size = params.evaluate.batch_size
    predict_fn = partial(predict_logits, model, precision=precision)
    logits = predict_fn(test.pixels, batch_size=batch_size).numpy()
    logits_tta = predict_fn(test.pixels, batch_size=batch_size, augmented=True).numpy()
    held_out = read_split(root / PREPARED, "validation")
    held_out_logits = predict_fn(held_out.pixels, batch_size=batch_size, augmented=True).numpy()

    temperature, temperature_tta = (fitted_temperature(config, augmented=augmented) for augmented in (False, True))
    metrics = compute_metrics(test.labels, logits, logits_tta, temperature=temperature, temperature_tta=temperature_tta)
    probabilities = softmax(logits, temperature)
    tables = compute_tables(test.labels, probabilities, classes) | {"corruptions": []}
    if params.evaluate.corruptions:
        robustness, tables["corruptions"] = corruption_metrics(predict_fn, test, logits, batch_size=batch_size)
        metrics |= robustness
    metrics |= {"familiarity_threshold": fit_familiarity_threshold(held_out_logits)}
    metrics |= {"parameters": num_parameters(model), "multiply_adds": multiply_adds(model)}
    metrics |= {"model_bytes": (root / MODEL / WEIGHTS_FILE).stat().st_size}
    metrics |= measure_latency(predict_fn, test.pixels) | {"training_seconds": provenance["seconds"]}
    metrics |= {"mlflow_run": provenance["mlflow_run"]}  # so that `dvc exp show` shows it
    metrics |= {"test_data": file_hash(root / PREPARED / "test_images.npy")}
    figures = plot_all(test, probabilities, classes, metrics, tables) | plot_training(model, history)

    require_unchanged(root, "evaluate", inputs)
    write_array(root / EVALUATION / "logits.npy", np.stack([logits, logits_tta]))
    for name, rows in tables.items():
        write_csv_table(root / EVALUATION / f"{name}.csv", rows)
    for name, figure in figures.items():
        write_figure(root / EVALUATION / "figures" / f"{name}.png", figure)
    write_json(root / EVALUATION / "metrics.json", metrics)
    mlflow_run = get_run_or_null(root, provenance, params.tracking)
    mlflow_run.log_evaluation(root / EVALUATION)
    mlflow_run.end()
    accuracy_line, speed_line = summary_lines(metrics)
    print(f"evaluate: {accuracy_line}\nevaluate: {speed_line} -> {EVALUATION}")


def require_same_classes(root: Path, classes: tuple[str, ...]) -> None:
    """
    Raises:
        UserError: if the test images have other classes than the model.
    """
    found = tuple(read_object(root / PREPARED / "statistics.json", "classes")["classes"])
    if found != classes:
        known, new = (shorten(", ".join(names), 100, placeholder=" ...") for names in (classes, found))
        raise UserError(f"{MODEL} knows the classes {known}, {PREPARED} has {new}; run `dvc repro train`")


if __name__ == "__main__":
    run(main)
