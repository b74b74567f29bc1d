"""Arrays in, numbers out."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, precision_recall_fscore_support

from cifar_resnet.images import Labels

Probabilities = NDArray[np.float64]


def softmax(logits: NDArray[np.floating[Any]]) -> Probabilities:
    """(N, C) logits to probabilities in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def classification(labels: Labels, logits: NDArray[np.floating[Any]], classes: tuple[str, ...]) -> dict[str, Any]:
    """Accuracy and log-loss of all images, precision, recall and F1 of each class."""
    everything = np.arange(len(classes))
    predicted = logits.argmax(axis=1)
    scores = precision_recall_fscore_support(labels, predicted, labels=everything, zero_division=0)
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "log_loss": float(log_loss(labels, softmax(logits), labels=everything)),
        "per_class": {
            name: {"precision": float(precision), "recall": float(recall), "f1": float(f1)}
            for name, precision, recall, f1 in zip(classes, *scores[:3], strict=True)
        },
    }


def confusion(labels: Labels, predicted: Labels, num_classes: int) -> NDArray[np.int64]:
    """Counts (C, C): rows are true classes, columns predicted ones."""
    return np.asarray(confusion_matrix(labels, predicted, labels=np.arange(num_classes)))
