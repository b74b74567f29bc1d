from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_images

from cifar_resnet.data.dataset import Images
from cifar_resnet.evaluation import corruptions, metrics, report
from cifar_resnet.evaluation.report import compute_metrics, compute_tables, corruption_metrics, write_csv_table
from cifar_resnet.inference.logits import softmax

CLASSES = ("a", "b", "never")
LABELS = np.array([0, 1, 1])
PLAIN = np.pad(np.log([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8]]), ((0, 0), (0, 1)), constant_values=-100)


def test_confidence_metrics_are_computed_with_and_without_the_temperature() -> None:
    values = compute_metrics(LABELS, PLAIN, PLAIN[::-1], temperature=2.0, temperature_tta=1.0)
    # the square roots of the odds 9 and 4 are 3 and 2: confidences 3/4 and 2/3
    assert values["log_loss"] == pytest.approx(-np.log([3 / 4, 1 / 4, 2 / 3]).mean())
    assert values["log_loss_uncalibrated"] == pytest.approx(-np.log([0.9, 0.1, 0.8]).mean())
    # 3/4 against 1/2, 2/3 against 1
    assert values["expected_calibration_error"] == pytest.approx((2 * 0.25 + 1 / 3) / 3)
    assert values["expected_calibration_error_uncalibrated"] == pytest.approx((2 * 0.4 + 0.2) / 3)
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert values["accuracy_tta"] == pytest.approx(0.0)
    # the augmented logits have their own temperature, here 1
    assert values["log_loss_tta"] == pytest.approx(-np.log([0.2, 0.1, 0.1]).mean())
    assert values["expected_calibration_error_tta"] == pytest.approx((0.8 + 2 * 0.9) / 3)
    assert values["brier_score"] == pytest.approx((2 * (1 / 4) ** 2 + 2 * (3 / 4) ** 2 + 2 * (1 / 3) ** 2) / 3)
    assert values["brier_score_uncalibrated"] == pytest.approx((2 * 0.1**2 + 2 * 0.9**2 + 2 * 0.2**2) / 3)
    assert values["brier_score_tta"] == pytest.approx((2 * 0.8**2 + 4 * 0.9**2) / 3)


def test_tables_have_every_image_class_and_confused_pair() -> None:
    tables = compute_tables(LABELS, softmax(PLAIN), CLASSES)
    assert tables["predictions"] == [
        {"index": 0, "actual": "a", "predicted": "a"},
        {"index": 1, "actual": "b", "predicted": "a"},
        {"index": 2, "actual": "b", "predicted": "b"},
    ]
    assert tables["confused_pairs"][0] == {"true": "b", "predicted": "a", "images": 1}
    assert [row["recall"] for row in tables["class_scores"]] == [1.0, 0.5, 0.0]
    assert tables["reliability"] == metrics.reliability(LABELS, softmax(PLAIN))
    assert tables["accuracy_coverage"][-1] == {"coverage": 1.0, "accuracy": pytest.approx(2 / 3)}


def test_corruption_accuracy_is_measured_on_a_fixed_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "CORRUPTED_IMAGES", 20)
    test = tiny_images(3, seed=0)
    calls = []

    def predict_fn(pixels: np.ndarray, *, batch_size: int) -> torch.Tensor:  # type: ignore[type-arg]
        calls.append((len(pixels), batch_size))
        return torch.eye(10)[torch.zeros(len(pixels), dtype=torch.int64)]

    values, table = corruption_metrics(predict_fn, test, np.eye(10)[test.labels], batch_size=7)
    assert calls == [(20, 7)] * 60
    assert values["mean_corruption_accuracy"] == pytest.approx(0.1)  # 2 of 20 are of class 0
    assert values["corruption_baseline_accuracy"] == 1.0
    assert [row["corruption"] for row in table] == list(corruptions.CORRUPTIONS)
    severities = {f"severity_{severity}": 0.1 for severity in range(1, 6)}
    assert table[0] == {"corruption": "gaussian_noise", "mean": pytest.approx(0.1)} | severities


@pytest.mark.parametrize(("num_classes", "per_class"), [(2, 10), (10, 2), (30, 1)])
def test_the_number_of_corrupted_images_does_not_depend_on_the_number_of_classes(
    num_classes: int, per_class: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "CORRUPTED_IMAGES", 20)
    labels = np.arange(20 * num_classes) % num_classes
    test, calls = Images(np.zeros((len(labels), 3, 32, 32), np.uint8), labels), []

    def predict_fn(pixels: np.ndarray, *, batch_size: int) -> torch.Tensor:  # type: ignore[type-arg]
        calls.append(len(pixels))
        return torch.zeros(len(pixels), num_classes)

    corruption_metrics(predict_fn, test, np.eye(num_classes)[labels], batch_size=7)
    assert calls == [num_classes * per_class] * 60


@pytest.mark.parametrize("num_classes", [2, 3, 100, 250])
def test_every_number_of_classes_has_all_figures(num_classes: int, tmp_path: Path) -> None:
    """A name may be long, and have signs that matplotlib would read as a formula."""
    labels = np.arange(2 * num_classes) % num_classes
    test = Images(np.zeros((len(labels), 3, 32, 32), np.uint8), labels)
    probabilities = softmax(np.eye(num_classes)[(labels + (labels == 1)) % num_classes])
    classes = ("$x$ ^ $", "1", *(f"{'a long name of a class ' * 3}{label}" for label in range(2, num_classes)))
    tables = compute_tables(labels, probabilities, classes) | {"corruptions": []}
    figures = report.plot_all(test, probabilities, classes, {"expected_calibration_error": 0.1}, tables)
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png", dpi=50)
        assert (tmp_path / f"{name}.png").stat().st_size > 1000, name


def test_the_figure_of_mistakes_names_the_true_and_the_predicted_class() -> None:
    test, probabilities = tiny_images(1, seed=0), np.full((10, 10), 0.004 / 9)
    probabilities[np.arange(10), test.labels] = 0.996
    probabilities[0] = np.roll(probabilities[0], 1)  # the predicted class is the one after the true class
    classes = tuple("abcdefghij")
    tables = compute_tables(test.labels, probabilities, classes) | {"corruptions": []}
    figures = report.plot_all(test, probabilities, classes, {"expected_calibration_error": 0.1}, tables)
    label, (axes,) = test.labels[0], figures["mistakes"].axes
    assert axes.get_title() == f"true: {classes[label]},\npredicted: {classes[(label + 1) % 10]} 99.6 %"


def test_csv_tables_have_a_header_and_six_decimals(tmp_path: Path) -> None:
    write_csv_table(tmp_path / "a.csv", [{"name": "a, b", "share": 2 / 3, "images": 7}])
    assert (tmp_path / "a.csv").read_text() == 'name,share,images\n"a, b",0.666667,7\n'
    write_csv_table(tmp_path / "none.csv", [])
    assert (tmp_path / "none.csv").read_text().strip() == ""
