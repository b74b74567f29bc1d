from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_images

from cifar_resnet.evaluation import corruptions, metrics, report
from cifar_resnet.evaluation.report import compute_metrics, compute_tables, corruption_metrics, write_csv_table
from cifar_resnet.inference import predictor

CLASSES = ("a", "b", "never")
LABELS = np.array([0, 1, 1])
PLAIN = np.pad(np.log([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8]]), ((0, 0), (0, 1)), constant_values=-100)


def test_confidence_is_measured_at_the_temperature_and_beside_it_without() -> None:
    found = compute_metrics(LABELS, PLAIN, PLAIN[::-1], temperature=2.0, temperature_tta=1.0)
    # the square roots of the odds 9 and 4 are 3 and 2: confidences 3/4 and 2/3
    assert found["log_loss"] == pytest.approx(-np.log([3 / 4, 1 / 4, 2 / 3]).mean())
    assert found["log_loss_uncalibrated"] == pytest.approx(-np.log([0.9, 0.1, 0.8]).mean())
    assert found["expected_calibration_error"] == pytest.approx(
        (2 * 0.25 + 1 / 3) / 3
    )  # 3/4 against 1/2, 2/3 against 1
    assert found["expected_calibration_error_uncalibrated"] == pytest.approx((2 * 0.4 + 0.2) / 3)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["accuracy_tta"] == pytest.approx(0.0)
    # augmented answers have a temperature of their own, here 1
    assert found["log_loss_tta"] == pytest.approx(-np.log([0.2, 0.1, 0.1]).mean())
    assert found["expected_calibration_error_tta"] == pytest.approx((0.8 + 2 * 0.9) / 3)
    assert found["brier_score"] == pytest.approx((2 * (1 / 4) ** 2 + 2 * (3 / 4) ** 2 + 2 * (1 / 3) ** 2) / 3)
    assert found["brier_score_uncalibrated"] == pytest.approx((2 * 0.1**2 + 2 * 0.9**2 + 2 * 0.2**2) / 3)
    assert found["brier_score_tta"] == pytest.approx((2 * 0.8**2 + 4 * 0.9**2) / 3)


def test_the_tables_tell_of_classes_pairs_and_every_image() -> None:
    found = compute_tables(LABELS, predictor.softmax(PLAIN), CLASSES)
    assert found["predictions"] == [
        {"index": 0, "actual": "a", "predicted": "a"},
        {"index": 1, "actual": "b", "predicted": "a"},
        {"index": 2, "actual": "b", "predicted": "b"},
    ]
    assert found["confused_pairs"][0] == {"true": "b", "predicted": "a", "images": 1}
    assert [row["recall"] for row in found["class_scores"]] == [1.0, 0.5, 0.0]
    assert found["reliability"] == metrics.reliability(LABELS, predictor.softmax(PLAIN))
    assert found["accuracy_coverage"][-1] == {"coverage": 1.0, "accuracy": pytest.approx(2 / 3)}


def test_robustness_is_the_accuracy_on_a_fixed_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "CORRUPTED_PER_CLASS", 2)
    test = tiny_images(3, seed=0)
    seen = []

    def answer(pixels: np.ndarray, *, batch_size: int) -> torch.Tensor:  # type: ignore[type-arg]
        seen.append((len(pixels), batch_size))
        return torch.eye(10)[torch.zeros(len(pixels), dtype=torch.int64)]

    found, table = corruption_metrics(answer, test, np.eye(10)[test.labels], batch_size=7)
    assert seen == [(20, 7)] * 60
    assert found["mean_corruption_accuracy"] == pytest.approx(0.1)  # 2 of 20 are of class 0
    assert found["corruption_baseline_accuracy"] == 1.0
    assert [row["corruption"] for row in table] == list(corruptions.CORRUPTIONS)
    severities = {f"severity_{severity}": 0.1 for severity in range(1, 6)}
    assert table[0] == {"corruption": "gaussian_noise", "mean": pytest.approx(0.1)} | severities


def test_a_table_is_written_with_its_columns_and_six_decimals(tmp_path: Path) -> None:
    write_csv_table(tmp_path / "a.csv", [{"name": "a, b", "share": 2 / 3, "images": 7}])
    assert (tmp_path / "a.csv").read_text() == 'name,share,images\n"a, b",0.666667,7\n'
    write_csv_table(tmp_path / "none.csv", [])
    assert (tmp_path / "none.csv").read_text().strip() == ""
