import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_resnet.evaluation.significance import Comparison, mcnemar_test


def counted(both: int, only_first: int, only_second: int, neither: int) -> Comparison:
    counts = (both, only_first, only_second, neither)
    return mcnemar_test(np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts))


def test_the_p_value_is_the_sum_of_the_binomial_tails() -> None:
    found = counted(80, 9, 1, 10)
    assert (found.images, found.only_first, found.only_second) == (100, 9, 1)
    assert found.p_value == pytest.approx(2 * (1 + 10) / 2**10)
    assert found.difference == pytest.approx(0.08)


def test_the_interval_is_that_of_the_formula_worked_by_hand() -> None:
    found = counted(80, 9, 1, 10)  # 9.5 - 1.5 = 8 of 102; variance (11 - 64 / 102) / 102^2
    half = 1.959964 * (11 - 64 / 102) ** 0.5 / 102
    assert (found.difference_low, found.difference_high) == pytest.approx((8 / 102 - half, 8 / 102 + half), abs=1e-6)


def test_models_that_err_alike_are_no_different_and_the_interval_has_a_width() -> None:
    found = counted(90, 0, 0, 10)
    assert (found.difference, found.p_value) == (0, 1)
    assert found.difference_low < 0 < found.difference_high


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    random, covered = np.random.default_rng(0), 0
    for _ in range(2000):
        cells = random.multinomial(1000, (0.88, 0.05, 0.03, 0.04))
        found = counted(*(int(cell) for cell in cells))
        covered += found.difference_low <= 0.02 <= found.difference_high
    assert 0.935 < covered / 2000 < 0.965  # three standard deviations of a share of 0.95 with n = 2000


@given(st.tuples(*[st.integers(0, 50)] * 4).filter(any))
def test_to_change_places_changes_the_sign_only(counts: tuple[int, int, int, int]) -> None:
    both, first, second, neither = counts
    one, other = counted(both, first, second, neither), counted(both, second, first, neither)
    assert one.p_value == pytest.approx(other.p_value)
    assert one.difference == -other.difference
    assert one.difference_low == pytest.approx(-other.difference_high)
    assert -1 <= one.difference_low <= one.difference <= one.difference_high <= 1
