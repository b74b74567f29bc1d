import numpy as np
import pytest

from cifar_resnet.evaluation import metrics
from cifar_resnet.inference.logits import softmax

LABELS = np.array([0, 0, 1, 1])
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])
CLASSES = ("a", "b", "never")


def test_classification_metrics_match_values_calculated_by_hand() -> None:
    values = metrics.classification_metrics(LABELS, PROBABILITIES)
    assert values["accuracy"] == 0.75
    assert values["top2_accuracy"] == 1.0
    assert metrics.classification_metrics(np.array([0, 0, 1, 2]), PROBABILITIES)["top2_accuracy"] == 0.75
    assert values["log_loss"] == pytest.approx(-np.log([0.7, 0.4, 0.8, 0.6]).mean())
    distances = [0.3**2 + 0.2**2 + 0.1**2, 0.6**2 + 0.5**2 + 0.1**2, 0.1**2 + 0.2**2 + 0.1**2, 0.3**2 + 0.4**2 + 0.1**2]
    assert values["brier_score"] == pytest.approx(np.mean(distances))
    # every image has its own bin: confidences 0.7, 0.5, 0.8, 0.6; the second is misclassified
    assert values["expected_calibration_error"] == pytest.approx((0.3 + 0.5 + 0.2 + 0.4) / 4)
    assert values["selective_accuracy_50"] == 1.0
    assert values["selective_accuracy_95"] == 0.75


def test_balanced_accuracy_is_the_mean_recall_and_is_reported_only_for_classes_of_unequal_size() -> None:
    labels, probabilities = np.array([0, 0, 0, 1]), np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    assert metrics.classification_metrics(labels, probabilities)["balanced_accuracy"] == pytest.approx(1 / 3)
    assert "balanced_accuracy" not in metrics.classification_metrics(labels[2:], probabilities[2:])


@pytest.mark.parametrize("num_classes", [2, 3, 100])
def test_every_number_of_classes_has_the_same_metrics_but_for_the_two_most_probable_classes(num_classes: int) -> None:
    labels = np.arange(2 * num_classes) % num_classes
    probabilities = softmax(3 * np.eye(num_classes)[labels])
    probabilities[0] = np.roll(probabilities[0], 1)
    values = metrics.classification_metrics(labels, probabilities)
    assert values["accuracy"] == 1 - 1 / len(labels)
    assert ("top2_accuracy" in values) == (num_classes > 2)
    picked = probabilities[np.arange(len(labels)), labels]
    assert values["log_loss"] == pytest.approx(-np.log(picked).mean())
    squares = ((probabilities - np.eye(num_classes)[labels]) ** 2).sum(axis=1)
    assert values["brier_score"] == pytest.approx(squares.mean())


def test_wilsons_interval_matches_its_formula() -> None:
    z, n, p = 1.959964, 10, 0.9
    centre, half = (p + z**2 / (2 * n)) / (1 + z**2 / n), z / (1 + z**2 / n) * (p * 0.1 / n + z**2 / (4 * n**2)) ** 0.5
    assert metrics.wilson_interval(9, 10) == pytest.approx([centre - half, centre + half], abs=1e-6)
    assert metrics.wilson_interval(0, 0) == [0.0, 1.0]


def test_class_scores_match_values_calculated_by_hand() -> None:
    a, b, never = metrics.class_scores(LABELS, PROBABILITIES.argmax(1), CLASSES)
    low, high = metrics.wilson_interval(1, 2)
    assert a == {
        "class": "a",
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "recall_low": low,
        "recall_high": high,
    }
    assert b["precision"] == pytest.approx(2 / 3)
    assert never["f1"] == 0.0


def test_softmax_of_large_logits_does_not_overflow() -> None:
    assert softmax(np.array([[1e4, 1e4]])).tolist() == [[0.5, 0.5]]


def test_a_temperature_divides_the_logits() -> None:
    assert softmax(np.array([[np.log(9.0), 0.0]]), 2.0)[0] == pytest.approx([0.75, 0.25])


def test_confusion_counts_have_true_classes_in_rows_and_pairs_are_sorted() -> None:
    counts = metrics.confusion_counts(LABELS, PROBABILITIES.argmax(1), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    pairs = metrics.confused_pairs(np.array([[9, 1, 4], [2, 9, 0], [0, 0, 9]]), CLASSES, limit=3)
    assert [tuple(pair.values()) for pair in pairs] == [("a", "never", 4), ("b", "a", 2), ("a", "b", 1)]


def test_reliability_has_means_intervals_and_counts_of_every_bin() -> None:
    probabilities = np.array([[0.96, 0.04], [0.98, 0.02], [0.45, 0.55]])
    unsure, sure = metrics.reliability(np.array([0, 1, 1]), probabilities)
    assert (unsure["confidence"], unsure["accuracy"], unsure["images"]) == (0.55, 1.0, 1)
    assert (sure["confidence"], sure["accuracy"], sure["images"]) == (pytest.approx(0.97), 0.5, 2)
    assert [sure["accuracy_low"], sure["accuracy_high"]] == metrics.wilson_interval(1, 2)


def test_coverage_starts_with_the_most_confident() -> None:
    coverage, accuracy = metrics.selective_accuracy(LABELS, PROBABILITIES)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert accuracy.tolist() == [1.0, 1.0, 1.0, 0.75]
    curve = metrics.accuracy_coverage(LABELS, PROBABILITIES)
    assert [row["coverage"] for row in curve] == [percent / 100 for percent in range(1, 101)]
    # 76 % of four images are four images
    assert [row["accuracy"] for row in curve] == [1.0] * 75 + [0.75] * 25


def test_the_most_confident_mistakes_come_first() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    assert metrics.confident_mistakes(np.array([0, 0, 0]), probabilities, limit=5).tolist() == [1, 2]
