import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_images

from cifar_resnet import corruptions, evaluation

CLASSES = ("a", "b", "never")
LABELS = np.array([0, 1, 1])
PLAIN = np.pad(np.log([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8]]), ((0, 0), (0, 1)), constant_values=-100)


def test_confidence_is_measured_at_the_temperature_and_beside_it_without() -> None:
    found = evaluation.numbers(LABELS, PLAIN, PLAIN[::-1], CLASSES, temperature=2.0)
    # the square roots of the odds 9 and 4 are 3 and 2: confidences 3/4 and 2/3
    assert found["log_loss"] == pytest.approx(-np.log([3 / 4, 1 / 4, 2 / 3]).mean())
    assert found["log_loss_uncalibrated"] == pytest.approx(-np.log([0.9, 0.1, 0.8]).mean())
    assert found["expected_calibration_error"] == pytest.approx(
        (2 * 0.25 + 1 / 3) / 3
    )  # 3/4 against 1/2, 2/3 against 1
    assert found["expected_calibration_error_uncalibrated"] == pytest.approx((2 * 0.4 + 0.2) / 3)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["accuracy_tta"] == pytest.approx(0.0)
    assert found["log_loss_tta"] == pytest.approx(-np.log([1 / 3, 1 / 4, 1 / 4]).mean())
    assert found["confused_pairs"][0] == {"true": "b", "predicted": "a", "images": 1}
    assert found["per_class"]["b"]["recall"] == 0.5


def test_robustness_is_the_accuracy_on_a_fixed_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "CORRUPTED_PER_CLASS", 2)
    test = tiny_images(3, seed=0)
    seen = []

    def answer(pixels: np.ndarray, *, batch_size: int) -> torch.Tensor:  # type: ignore[type-arg]
        seen.append((len(pixels), batch_size))
        return torch.eye(10)[torch.zeros(len(pixels), dtype=torch.int64)]

    found = evaluation.robustness(answer, test, np.eye(10)[test.labels], batch_size=7)
    assert seen == [(20, 7)] * 60
    assert found["mean_corruption_accuracy"] == pytest.approx(0.1)  # 2 of 20 are of class 0
    assert found["corruption_baseline_accuracy"] == 1.0
    assert found["corruption_accuracy"] == dict.fromkeys(corruptions.CORRUPTIONS, [0.1] * 5)


def test_predictions_are_a_table_of_names(tmp_path: Path) -> None:
    evaluation.write_predictions(tmp_path / "a.csv", LABELS, PLAIN.argmax(1), CLASSES)
    with (tmp_path / "a.csv").open(newline="") as stream:
        assert [tuple(row.values()) for row in csv.DictReader(stream)] == [
            ("0", "a", "a"),
            ("1", "b", "a"),
            ("2", "b", "b"),
        ]
