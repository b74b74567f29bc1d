import pytest

from cifar_resnet.training.learning_rate import learning_rate_factor


@pytest.mark.parametrize(
    ("step", "factor", "reason"),
    [
        (0, 0.25, "the first step of three warm-up steps already learns"),
        (1, 0.5, "linear rise"),
        (2, 0.75, "linear rise"),
        (3, 1.0, "the peak follows the warm-up"),
        (8, 0.5, "half-way down"),
        (12, 0.1, "the last step still learns"),
    ],
)
def test_the_learning_rate_follows_the_table(step: int, factor: float, reason: str) -> None:
    assert learning_rate_factor(step, steps=13, warmup_steps=3) == pytest.approx(factor), reason


def test_without_warm_up_the_first_step_has_the_peak_learning_rate() -> None:
    assert learning_rate_factor(0, steps=10, warmup_steps=0) == 1
