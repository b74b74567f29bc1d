import numpy as np
import pytest

from cifar_resnet.inference.calibration import fit_temperature
from cifar_resnet.inference.logits import softmax


def overconfident(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Logits (count, 3) that are twice as large as those which the labels were drawn from."""
    random = np.random.default_rng(seed)
    logits = 3 * random.normal(size=(count, 3))
    labels = np.array([random.choice(3, p=row) for row in softmax(logits)])
    return 2 * logits.astype(np.float32), labels


def test_the_temperature_undoes_a_factor_of_the_logits() -> None:
    assert fit_temperature(*overconfident(20_000)) == pytest.approx(2, rel=0.05)


def test_without_images_the_temperature_is_1() -> None:
    assert fit_temperature(np.empty((0, 3), np.float32), np.empty(0, np.int64)) == 1


@pytest.mark.parametrize("count", [1, 3, 9, 30])
def test_few_images_that_are_all_classified_correctly_do_not_make_the_network_certain(count: int) -> None:
    labels = np.arange(count) % 3
    logits = np.where(np.eye(3)[labels] == 1, 2.0, 0.0).astype(np.float32)
    confidence = softmax(logits, fit_temperature(logits, labels)).max(axis=1)
    # As if one more image had a third of each label, in the mean.
    assert confidence == pytest.approx(1 - 2 / 3 / (count + 1), abs=0.01)
