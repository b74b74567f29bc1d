import numpy as np
import pytest

from cifar_resnet import metrics

LABELS = np.array([0, 0, 1, 1])
LOGITS = np.log(np.array([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]]))


def test_scores_are_those_counted_by_hand() -> None:
    scores = metrics.classification(LABELS, LOGITS, ("a", "b", "never"))
    assert scores["accuracy"] == 0.75
    assert scores["log_loss"] == pytest.approx(-np.log([0.7, 0.4, 0.8, 0.6]).mean())
    assert scores["per_class"]["a"] == pytest.approx({"precision": 1.0, "recall": 0.5, "f1": 2 / 3})
    assert scores["per_class"]["b"] == pytest.approx({"precision": 2 / 3, "recall": 1.0, "f1": 0.8})
    assert scores["per_class"]["never"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_softmax_survives_large_logits() -> None:
    assert metrics.softmax(np.array([[1e4, 1e4]])).tolist() == [[0.5, 0.5]]


def test_confusion_has_true_classes_in_rows() -> None:
    assert metrics.confusion(LABELS, LOGITS.argmax(1), 3).tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
