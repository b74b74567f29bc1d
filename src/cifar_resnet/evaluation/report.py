"""The outputs of evaluate: metrics, tables and figures of the predictions on the test images."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cifar_resnet.data.dataset import Images, Labels
from cifar_resnet.evaluation import corruptions, metrics, plots
from cifar_resnet.evaluation.metrics import Floats, Table
from cifar_resnet.files import atomic_write
from cifar_resnet.inference.logits import softmax
from cifar_resnet.models.resnet import ResNet
from cifar_resnet.training.history import EpochRecord

NUM_MISTAKES = 24  # images in the figure of mistakes
MISTAKES_TITLE = "The most confident mistakes on the test images, with the confidence in the predicted class"
CONFIDENCE_METRICS = ("log_loss", "brier_score", "expected_calibration_error")
DECIMALS = 6  # of the numbers in a table
CORRUPTED_IMAGES = 1_000  # enough to compare two networks; CIFAR-10's 10,000 would take ten minutes


def compute_metrics(
    labels: Labels, plain: Floats, augmented: Floats, *, temperature: float, temperature_tta: float
) -> dict[str, Any]:
    """The part of metrics.json that follows from logits (N, C).

    Args:
        plain: logits without test-time augmentation.
        augmented: logits with test-time augmentation; their metrics end in _tta.
        temperature: divisor of the plain logits; 1 for the metrics that end in _uncalibrated.
        temperature_tta: divisor of the augmented logits.
    """
    calibrated = metrics.classification_metrics(labels, softmax(plain, temperature))
    uncalibrated = metrics.classification_metrics(labels, softmax(plain))
    with_tta = metrics.classification_metrics(labels, softmax(augmented, temperature_tta))
    calibrated |= {f"{name}_uncalibrated": uncalibrated[name] for name in CONFIDENCE_METRICS}
    tta_metrics = ("accuracy", "accuracy_interval", "balanced_accuracy", *CONFIDENCE_METRICS)
    return calibrated | {f"{name}_tta": with_tta[name] for name in tta_metrics if name in with_tta}


def compute_tables(labels: Labels, probabilities: Floats, classes: tuple[str, ...]) -> dict[str, Table]:
    """Tables by file name, without .csv; the figures and `dvc plots` draw them."""
    predicted = probabilities.argmax(axis=1)
    pairs = zip(labels, predicted, strict=True)
    return {
        "predictions": [
            {"index": index, "actual": classes[actual_label], "predicted": classes[predicted_label]}
            for index, (actual_label, predicted_label) in enumerate(pairs)
        ],
        "confused_pairs": metrics.confused_pairs(metrics.confusion_counts(labels, predicted, len(classes)), classes),
        "class_scores": metrics.class_scores(labels, predicted, classes),
        "reliability": metrics.reliability(labels, probabilities),
        "accuracy_coverage": metrics.accuracy_coverage(labels, probabilities),
    }


def corruption_metrics(
    predict_fn: Callable[..., Tensor], test: Images, plain: Floats, *, batch_size: int
) -> tuple[dict[str, float], Table]:
    """Metrics and table of the accuracy under corruption.

    The images are a fixed subset: CORRUPTED_IMAGES random test images, equally many of every class.

    Args:
        predict_fn: called with uint8 (N, 3, 32, 32) and `batch_size`; returns logits (N, C).
        plain: logits (N, C) of all test images without corruption.
    """
    rows = corruptions.balanced_subset(test.labels, max(1, CORRUPTED_IMAGES // plain.shape[1]))
    accuracies = corruptions.corruption_accuracies(predict_fn, test.take(rows), batch_size=batch_size)
    baseline = float((plain[rows].argmax(1) == test.labels[rows]).mean())
    table = [
        {"corruption": name, "mean": float(row.mean())}
        | {f"severity_{severity}": float(accuracy) for severity, accuracy in enumerate(row, start=1)}
        for name, row in zip(corruptions.CORRUPTIONS, accuracies, strict=True)
    ]
    return {"mean_corruption_accuracy": float(accuracies.mean()), "corruption_baseline_accuracy": baseline}, table


def plot_all(
    test: Images, probabilities: Floats, classes: tuple[str, ...], values: dict[str, Any], tables: dict[str, Table]
) -> dict[str, Any]:
    """Figures of the predictions on the test images, by file name; `values` is the content of metrics.json."""
    labels, predicted = test.labels, probabilities.argmax(1)
    mistakes = metrics.confident_mistakes(labels, probabilities, NUM_MISTAKES)
    names = [plots.label_text(name) for name in classes]
    captions = [
        f"true: {names[labels[row]]},\npredicted: {names[predicted[row]]} {100 * probabilities[row].max():.1f} %"
        for row in mistakes
    ]
    return {
        "confusion_matrix": plots.plot_confusion_matrix(
            metrics.confusion_counts(labels, predicted, len(classes)), classes
        ),
        "class_scores": plots.plot_class_scores(tables["class_scores"]),
        "reliability": plots.plot_reliability(tables["reliability"], values["expected_calibration_error"]),
        "accuracy_coverage": plots.plot_accuracy_coverage(tables["accuracy_coverage"]),
        "mistakes": plots.plot_gallery(test.pixels[mistakes], captions, MISTAKES_TITLE),
        "corruptions": (
            plots.plot_corruptions(tables["corruptions"], values["corruption_baseline_accuracy"])
            if tables["corruptions"]
            else plots.plot_notice("Not measured: evaluate.corruptions is false in params.yaml")
        ),
    }


def plot_training(model: ResNet, history: list[EpochRecord]) -> dict[str, Any]:
    """Figures of the training: learning curves and the filters of the first layer."""
    first = model.stem[0]
    assert isinstance(first, nn.Conv2d)
    return {
        "learning_curves": plots.plot_learning_curves(history),
        "first_filters": plots.plot_first_filters(first.weight.detach().cpu().numpy()),
    }


def summary_lines(values: dict[str, Any]) -> tuple[str, str]:
    """Two lines for the terminal from the content of metrics.json: accuracies, then other metrics."""
    low, high = values["accuracy_interval"]
    corrupted = values.get("mean_corruption_accuracy")
    robustness = "" if corrupted is None else f"{corrupted:.1%} under corruption, "
    balanced = f", balanced accuracy {values['balanced_accuracy']:.2%}" if "balanced_accuracy" in values else ""
    return (
        f"test accuracy {values['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%}), "
        f"{values['accuracy_tta']:.2%} with test-time augmentation{balanced}",
        f"{robustness}log-loss {values['log_loss']:.3f}, {values['images_per_second']:,.0f} images/s",
    )


def write_csv_table(path: Path, rows: Table) -> None:
    """Write a CSV file with a header; an empty table becomes an empty file."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0] if rows else (), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _round_float(value) for key, value in row.items()} for row in rows)


def _round_float(value: Any) -> Any:
    return round(value, DECIMALS) if isinstance(value, float) else value
