"""What evaluate tells of a network's answers on the test images: numbers, pictures and a table."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cifar_resnet import corruptions, figures, metrics
from cifar_resnet.files import whole
from cifar_resnet.images import Images, Labels
from cifar_resnet.metrics import Floats
from cifar_resnet.records import EpochRecord
from cifar_resnet.resnet import ResNet

MISTAKES_SHOWN = 24
MISTAKES_TITLE = "The most confident mistakes on test images: the true class, not the predicted one (confidence)"
CORRUPTED_PER_CLASS = 100  # images; 10,000 would take ten minutes, and the same 1,000 tell one network from another


def numbers(
    labels: Labels, plain: Floats, augmented: Floats, classes: tuple[str, ...], temperature: float
) -> dict[str, Any]:
    """The content of metrics.json that follows from logits (N, C), without and with test-time augmentation.

    What depends on confidence is measured at the temperature, but for the names that end in _uncalibrated.
    """
    found = metrics.summary(labels, metrics.softmax(plain, temperature))
    uncalibrated = metrics.summary(labels, metrics.softmax(plain))
    with_tta = metrics.summary(labels, metrics.softmax(augmented, temperature))
    found |= {f"{name}_uncalibrated": uncalibrated[name] for name in ("log_loss", "expected_calibration_error")}
    found |= {f"{name}_tta": with_tta[name] for name in ("accuracy", "accuracy_interval", "log_loss")}
    counts = metrics.confusion(labels, plain.argmax(1), len(classes))
    found["confused_pairs"] = metrics.confused_pairs(counts, classes)
    found["per_class"] = metrics.per_class(labels, plain.argmax(1), classes)
    return found


def robustness(answer: Callable[..., Tensor], test: Images, plain: Floats, *, batch_size: int) -> dict[str, Any]:
    """Accuracy under corruptions, on a fixed subset of CORRUPTED_PER_CLASS random images of every class.

    corruption_accuracy holds those at severities 1 to 5, mean_corruption_accuracy is the mean of them all,
    corruption_baseline_accuracy that on the same images as they are.

    Args:
        answer: logits (N, C) of uint8 (N, 3, 32, 32) and `batch_size`.
        plain: logits (N, C) of all test images.
    """
    rows = corruptions.subset(test.labels, CORRUPTED_PER_CLASS)
    found = corruptions.accuracies(answer, test.take(rows), batch_size=batch_size)
    return {
        "mean_corruption_accuracy": float(found.mean()),
        "corruption_baseline_accuracy": float((plain[rows].argmax(1) == test.labels[rows]).mean()),
        "corruption_accuracy": dict(zip(corruptions.CORRUPTIONS, found.tolist(), strict=True)),
    }


def pictures(
    test: Images, plain: Floats, found: dict[str, Any], classes: tuple[str, ...], temperature: float
) -> dict[str, Any]:
    """The figures of how the test images were classified; `found` is the content of metrics.json."""
    labels, probabilities = test.labels, metrics.softmax(plain, temperature)
    worst = metrics.confident_mistakes(labels, probabilities, MISTAKES_SHOWN)
    captions = [
        f"{classes[labels[row]]}, not\n{classes[probabilities[row].argmax()]} ({probabilities[row].max():.0%})"
        for row in worst
    ]
    error = found["expected_calibration_error"]
    return {
        "confusion_matrix": figures.confusion_matrix(
            metrics.confusion(labels, probabilities.argmax(1), len(classes)), classes
        ),
        "class_scores": figures.class_scores(found["per_class"]),
        "reliability": figures.reliability(*metrics.calibration(labels, probabilities), error),
        "accuracy_coverage": figures.accuracy_coverage(*metrics.selective_accuracy(labels, probabilities)),
        "mistakes": figures.gallery(test.pixels[worst], captions, MISTAKES_TITLE),
        "corruptions": (
            figures.corruptions(found["corruption_accuracy"], found["corruption_baseline_accuracy"])
            if "corruption_accuracy" in found
            else figures.notice("Not measured: evaluate.corruptions is false")
        ),
    }


def pictures_of_training(model: ResNet, history: list[EpochRecord]) -> dict[str, Any]:
    """The figures of how the network became what it is."""
    first = model.stem[0]
    assert isinstance(first, nn.Conv2d)
    return {
        "learning_curves": figures.learning_curves(history),
        "first_filters": figures.first_filters(first.weight.detach().cpu().numpy()),
    }


def write_predictions(path: Path, labels: Labels, predicted: Labels, classes: tuple[str, ...]) -> None:
    """A row for each image, for DVC's own confusion matrix."""
    with whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["index", "actual", "predicted"])
        for index, (actual, guess) in enumerate(zip(labels, predicted, strict=True)):
            table.writerow([index, classes[actual], classes[guess]])
