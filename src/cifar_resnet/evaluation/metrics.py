"""Arrays in, numbers out: scikit-learn and scipy first, own code only for what they lack.

Labels are int64 (N,), logits and probabilities float (N, C); shares are 0 to 1. docs/metrics.md says what each number
and each column means.
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
    top_k_accuracy_score,
)

from cifar_resnet.data.dataset import Labels

Floats = NDArray[np.floating[Any]]
Table = list[dict[str, Any]]  # rows with the same columns
COVERAGES = (50, 80, 90, 95)


def classification_metrics(labels: Labels, probabilities: Floats) -> dict[str, Any]:
    """The numbers that describe all images at once.

    accuracy_interval is Wilson's of 95 %; brier_score the mean squared distance over classes, 0 to 2;
    expected_calibration_error that of `reliability`; selective_accuracy_N the accuracy on the N % of images with the
    highest confidence.
    """
    everything = np.arange(probabilities.shape[1])
    predicted = probabilities.argmax(axis=1)
    coverage, accuracy = selective_accuracy(labels, probabilities)
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "accuracy_interval": wilson_interval(int((labels == predicted).sum()), len(labels)),
        "top2_accuracy": float(top_k_accuracy_score(labels, probabilities, k=2, labels=everything)),
        "log_loss": float(log_loss(labels, probabilities, labels=everything)),
        "brier_score": float(brier_score_loss(labels, probabilities, labels=everything, scale_by_half=False)),
        "expected_calibration_error": expected_calibration_error(labels, probabilities),
        **{f"selective_accuracy_{c}": float(accuracy[np.searchsorted(coverage, c / 100)]) for c in COVERAGES},
    }


def class_scores(labels: Labels, predicted: Labels, classes: tuple[str, ...]) -> Table:
    """Precision, recall and F1 of each class, and the ends of recall's Wilson interval of 95 %."""
    everything = np.arange(len(classes))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=everything, zero_division=0
    )
    found = []
    for index, name in enumerate(classes):
        low, high = wilson_interval(round(recall[index] * support[index]), int(support[index]))
        scores = {"precision": precision[index], "recall": recall[index], "f1": f1[index]}
        row = {key: float(value) for key, value in scores.items()}
        found.append({"class": name, **row, "recall_low": low, "recall_high": high})
    return found


def wilson_interval(hits: int, count: int) -> list[float]:
    """Wilson's 95 % interval of a share; nothing is known of none."""
    if count == 0:
        return [0.0, 1.0]
    found = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    return [float(found.low), float(found.high)]


def confusion_counts(labels: Labels, predicted: Labels, num_classes: int) -> NDArray[np.int64]:
    """Counts (C, C): rows are true classes, columns predicted ones."""
    return np.asarray(confusion_matrix(labels, predicted, labels=np.arange(num_classes)))


def confused_pairs(counts: NDArray[np.int64], classes: tuple[str, ...], most: int = 10) -> Table:
    """The most frequent mistakes, most first: true class, predicted class and number of images."""
    mistakes = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:most]
    pairs = [np.unravel_index(place, counts.shape) for place in order]
    return [
        {"true": classes[row], "predicted": classes[column], "images": int(mistakes[row, column])}
        for row, column in pairs
    ]


def reliability(labels: Labels, probabilities: Floats, bins: int = 15) -> Table:
    """Mean confidence, accuracy with its Wilson interval of 95 %, and number of images, of those bins of equal width
    that hold any."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    hits = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    found = []
    for place in np.unique(places):
        held = places == place
        low, high = wilson_interval(int(hits[held].sum()), int(held.sum()))
        means = {"confidence": float(confidence[held].mean()), "accuracy": float(hits[held].mean())}
        found.append({**means, "accuracy_low": low, "accuracy_high": high, "images": int(held.sum())})
    return found


def expected_calibration_error(labels: Labels, probabilities: Floats) -> float:
    """Mean distance between confidence and accuracy over 15 bins (Guo et al., 2017, section 2)."""
    bins = reliability(labels, probabilities)
    return float(sum(row["images"] * abs(row["confidence"] - row["accuracy"]) for row in bins) / len(labels))


def selective_accuracy(labels: Labels, probabilities: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coverage (N,), rising to 1, and the accuracy on that share of images, the most confident ones first."""
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    hits = (probabilities.argmax(axis=1) == labels)[order]
    counts = np.arange(1, len(labels) + 1)
    return counts / len(labels), np.cumsum(hits) / counts


def accuracy_coverage(labels: Labels, probabilities: Floats) -> Table:
    """`selective_accuracy` at every percent of coverage."""
    coverage, accuracy = selective_accuracy(labels, probabilities)
    shares = [percent / 100 for percent in range(1, 101)]
    return [{"coverage": share, "accuracy": float(accuracy[np.searchsorted(coverage, share)])} for share in shares]


def confident_mistakes(labels: Labels, probabilities: Floats, most: int) -> NDArray[np.intp]:
    """Rows of the wrongly classified images, the most confident first."""
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:most]
