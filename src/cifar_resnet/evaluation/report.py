"""What evaluate tells of a network's answers on the test images: numbers, tables and pictures."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cifar_resnet.data.dataset import Images, Labels
from cifar_resnet.evaluation import corruptions, metrics, plots
from cifar_resnet.evaluation.metrics import Floats, Table
from cifar_resnet.files import atomic_write
from cifar_resnet.inference import predictor
from cifar_resnet.models.resnet import ResNet
from cifar_resnet.training.history import EpochRecord

MISTAKES_SHOWN = 24
MISTAKES_TITLE = "The most confident mistakes on test images: the true class, not the predicted one (confidence)"
OF_CONFIDENCE = ("log_loss", "brier_score", "expected_calibration_error")
DECIMALS = 6  # of the numbers in a table
CORRUPTED_PER_CLASS = 100  # images; 10,000 would take ten minutes, and the same 1,000 tell one network from another


def compute_metrics(
    labels: Labels, plain: Floats, augmented: Floats, *, temperature: float, temperature_tta: float
) -> dict[str, Any]:
    """The content of metrics.json that follows from logits (N, C), without and with test-time augmentation.

    What depends on confidence is measured at the temperature of its logits, but for the names that end in
    _uncalibrated.
    """
    found = metrics.classification_metrics(labels, predictor.softmax(plain, temperature))
    uncalibrated = metrics.classification_metrics(labels, predictor.softmax(plain))
    with_tta = metrics.classification_metrics(labels, predictor.softmax(augmented, temperature_tta))
    found |= {f"{name}_uncalibrated": uncalibrated[name] for name in OF_CONFIDENCE}
    return found | {f"{name}_tta": with_tta[name] for name in ("accuracy", "accuracy_interval", *OF_CONFIDENCE)}


def compute_tables(labels: Labels, probabilities: Floats, classes: tuple[str, ...]) -> dict[str, Table]:
    """What is more than a number, by the name of its file; figures draw it, `dvc plots diff` compares it."""
    predicted = probabilities.argmax(axis=1)
    pairs = zip(labels, predicted, strict=True)
    return {
        "predictions": [
            {"index": index, "actual": classes[actual], "predicted": classes[guess]}
            for index, (actual, guess) in enumerate(pairs)
        ],
        "confused_pairs": metrics.confused_pairs(metrics.confusion_counts(labels, predicted, len(classes)), classes),
        "class_scores": metrics.class_scores(labels, predicted, classes),
        "reliability": metrics.reliability(labels, probabilities),
        "accuracy_coverage": metrics.accuracy_coverage(labels, probabilities),
    }


def corruption_metrics(
    answer: Callable[..., Tensor], test: Images, plain: Floats, *, batch_size: int
) -> tuple[dict[str, float], Table]:
    """Numbers and table of the accuracy under corruptions, on a fixed subset of CORRUPTED_PER_CLASS random images of
    every class: at severities 1 to 5, the mean of them, and without corruption.

    Args:
        answer: logits (N, C) of uint8 (N, 3, 32, 32) and `batch_size`.
        plain: logits (N, C) of all test images.
    """
    rows = corruptions.balanced_subset(test.labels, CORRUPTED_PER_CLASS)
    found = corruptions.corruption_accuracies(answer, test.take(rows), batch_size=batch_size)
    baseline = float((plain[rows].argmax(1) == test.labels[rows]).mean())
    table = [
        {"corruption": name, "mean": float(row.mean())}
        | {f"severity_{severity}": float(accuracy) for severity, accuracy in enumerate(row, start=1)}
        for name, row in zip(corruptions.CORRUPTIONS, found, strict=True)
    ]
    return {"mean_corruption_accuracy": float(found.mean()), "corruption_baseline_accuracy": baseline}, table


def plot_all(
    test: Images, probabilities: Floats, classes: tuple[str, ...], found: dict[str, Any], tables: dict[str, Table]
) -> dict[str, Any]:
    """The figures of how the test images were classified; `found` is the content of metrics.json."""
    labels = test.labels
    worst = metrics.confident_mistakes(labels, probabilities, MISTAKES_SHOWN)
    captions = [
        f"{classes[labels[row]]}, not\n{classes[probabilities[row].argmax()]} ({probabilities[row].max():.1%})"
        for row in worst
    ]
    return {
        "confusion_matrix": plots.plot_confusion_matrix(
            metrics.confusion_counts(labels, probabilities.argmax(1), len(classes)), classes
        ),
        "class_scores": plots.plot_class_scores(tables["class_scores"]),
        "reliability": plots.plot_reliability(tables["reliability"], found["expected_calibration_error"]),
        "accuracy_coverage": plots.plot_accuracy_coverage(tables["accuracy_coverage"]),
        "mistakes": plots.plot_gallery(test.pixels[worst], captions, MISTAKES_TITLE),
        "corruptions": (
            plots.plot_corruptions(tables["corruptions"], found["corruption_baseline_accuracy"])
            if tables["corruptions"]
            else plots.plot_notice("Not measured: evaluate.corruptions is false")
        ),
    }


def plot_training(model: ResNet, history: list[EpochRecord]) -> dict[str, Any]:
    """The figures of how the network became what it is."""
    first = model.stem[0]
    assert isinstance(first, nn.Conv2d)
    return {
        "learning_curves": plots.plot_learning_curves(history),
        "first_filters": plots.plot_first_filters(first.weight.detach().cpu().numpy()),
    }


def summary_lines(found: dict[str, Any]) -> tuple[str, str]:
    """What people want to know first: accuracy, and the rest."""
    low, high = found["accuracy_interval"]
    under = "mean_corruption_accuracy"
    bears = f"{found[under]:.1%} under corruption, " if under in found else ""
    return (
        f"test accuracy {found['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%}), "
        f"{found['accuracy_tta']:.2%} with test-time augmentation",
        f"{bears}log-loss {found['log_loss']:.3f}, {found['images_per_second']:,.0f} images/s",
    )


def write_csv_table(path: Path, rows: Table) -> None:
    """As CSV, with a line for the columns; an empty file without rows."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, rows[0] if rows else (), lineterminator="\n")
        table.writeheader()
        table.writerows({key: rounded(value) for key, value in row.items()} for row in rows)


def rounded(value: Any) -> Any:
    return round(value, DECIMALS) if isinstance(value, float) else value
