"""Classification metrics from arrays: scikit-learn and scipy where they have the metric, own code otherwise.

Labels are int64 (N,), logits and probabilities float (N, C). Shares are between 0 and 1. docs/results.md explains every
metric and every column.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    recall_score,
    top_k_accuracy_score,
)

from cifar_resnet.data.dataset import Labels

Floats = NDArray[np.floating[Any]]
Table = list[dict[str, Any]]  # rows with the same columns
COVERAGES = (50, 80, 90, 95)


def classification_metrics(labels: Labels, probabilities: Floats) -> dict[str, Any]:
    """The metrics of all images together.

    accuracy_interval is Wilson's 95 % interval; brier_score is between 0 and 2; selective_accuracy_N is the accuracy on
    the N % of the images with the highest confidence. Only with classes of unequal size: balanced_accuracy, the mean
    recall of the classes. Only with more than two classes: top2_accuracy, which would be 1.
    """
    num_classes = probabilities.shape[1]
    class_indices = np.arange(num_classes)
    predicted = probabilities.argmax(axis=1)
    coverage, accuracy = selective_accuracy(labels, probabilities)
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "accuracy_interval": wilson_interval(int((labels == predicted).sum()), len(labels)),
        **({} if has_equal_classes(labels, num_classes) else {"balanced_accuracy": mean_recall(labels, predicted)}),
        **({"top2_accuracy": top2_accuracy(labels, probabilities)} if num_classes > 2 else {}),
        "log_loss": float(log_loss(labels, probabilities, labels=class_indices)),
        "brier_score": float(brier_score_loss(labels, probabilities, labels=class_indices, scale_by_half=False)),
        "expected_calibration_error": expected_calibration_error(labels, probabilities),
        **{f"selective_accuracy_{c}": float(accuracy[np.searchsorted(coverage, c / 100)]) for c in COVERAGES},
    }


def has_equal_classes(labels: Labels, num_classes: int) -> bool:
    """Whether all classes have the same number of images."""
    counts = np.bincount(labels, minlength=num_classes)
    return bool(counts.min() == counts.max())


def mean_recall(labels: Labels, predicted: Labels) -> float:
    """The balanced accuracy; a class without an image does not count."""
    return float(recall_score(labels, predicted, labels=np.unique(labels), average="macro"))


def top2_accuracy(labels: Labels, probabilities: Floats) -> float:
    """The share of images whose true class is among the two most probable ones; for more than two classes."""
    return float(top_k_accuracy_score(labels, probabilities, k=2, labels=np.arange(probabilities.shape[1])))


def class_scores(labels: Labels, predicted: Labels, classes: tuple[str, ...]) -> Table:
    """Precision, recall and F1 of each class, and Wilson's 95 % interval of the recall."""
    class_indices = np.arange(len(classes))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=class_indices, zero_division=0
    )
    rows = []
    for index, name in enumerate(classes):
        low, high = wilson_interval(round(recall[index] * support[index]), int(support[index]))
        scores = {"precision": precision[index], "recall": recall[index], "f1": f1[index]}
        floats = {key: float(value) for key, value in scores.items()}
        rows.append({"class": name, **floats, "recall_low": low, "recall_high": high})
    return rows


def wilson_interval(num_correct: int, count: int) -> list[float]:
    """Wilson's 95 % interval of the share num_correct / count; 0 to 1 if `count` is 0."""
    if count == 0:
        return [0.0, 1.0]
    interval = binomtest(num_correct, count).proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def confusion_counts(labels: Labels, predicted: Labels, num_classes: int) -> NDArray[np.int64]:
    """Number of images (C, C): rows are true classes, columns predicted classes."""
    return np.asarray(confusion_matrix(labels, predicted, labels=np.arange(num_classes)))


def confused_pairs(counts: NDArray[np.int64], classes: tuple[str, ...], limit: int = 10) -> Table:
    """The most frequent mistakes in descending order: true class, predicted class and number of images."""
    mistakes = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:limit]
    pairs = [np.unravel_index(index, counts.shape) for index in order]
    return [
        {"true": classes[row], "predicted": classes[column], "images": int(mistakes[row, column])}
        for row, column in pairs
    ]


def reliability(labels: Labels, probabilities: Floats, bins: int = 15) -> Table:
    """Mean confidence, accuracy with Wilson's 95 % interval, and number of images of every bin.

    The bins have equal width. Empty bins are skipped.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    bin_indices = np.minimum((confidence * bins).astype(int), bins - 1)
    rows = []
    for index in np.unique(bin_indices):
        in_bin = bin_indices == index
        low, high = wilson_interval(int(correct[in_bin].sum()), int(in_bin.sum()))
        means = {"confidence": float(confidence[in_bin].mean()), "accuracy": float(correct[in_bin].mean())}
        rows.append({**means, "accuracy_low": low, "accuracy_high": high, "images": int(in_bin.sum())})
    return rows


def expected_calibration_error(labels: Labels, probabilities: Floats) -> float:
    """Mean of |confidence - accuracy| over 15 bins, weighted by images (Guo et al., 2017, section 2)."""
    bins = reliability(labels, probabilities)
    return float(sum(row["images"] * abs(row["confidence"] - row["accuracy"]) for row in bins) / len(labels))


def selective_accuracy(labels: Labels, probabilities: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coverage (N,), rising to 1, and the accuracy (N,) on that share of the images, the most confident ones first."""
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    correct = (probabilities.argmax(axis=1) == labels)[order]
    counts = np.arange(1, len(labels) + 1)
    return counts / len(labels), np.cumsum(correct) / counts


def accuracy_coverage(labels: Labels, probabilities: Floats) -> Table:
    """`selective_accuracy` at every percent of coverage."""
    coverage, accuracy = selective_accuracy(labels, probabilities)
    shares = [percent / 100 for percent in range(1, 101)]
    return [{"coverage": share, "accuracy": float(accuracy[np.searchsorted(coverage, share)])} for share in shares]


def confident_mistakes(labels: Labels, probabilities: Floats, limit: int) -> NDArray[np.intp]:
    """Rows of the misclassified images, the most confident first."""
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:limit]
