import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_resnet.evaluation.significance import Comparison, mcnemar_test


def compare_counts(both: int, only_first: int, only_second: int, neither: int) -> Comparison:
    counts = (both, only_first, only_second, neither)
    return mcnemar_test(np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts))


def test_the_p_value_is_the_sum_of_the_binomial_tails() -> None:
    comparison = compare_counts(80, 9, 1, 10)
    assert (comparison.images, comparison.only_first, comparison.only_second) == (100, 9, 1)
    assert comparison.p_value == pytest.approx(2 * (1 + 10) / 2**10)
    assert comparison.difference == pytest.approx(0.08)


@pytest.mark.parametrize(("only_first", "text"), [(9, "p = 0.0039 on"), (1200, "p < 1e-300 on")])  # 2^-1199 underflows
def test_a_p_value_is_printed_with_two_digits_and_never_as_zero(only_first: int, text: str) -> None:
    assert text in str(compare_counts(2000, only_first, 0, 10))


def test_the_interval_matches_the_formula() -> None:
    comparison = compare_counts(80, 9, 1, 10)  # 9.5 - 1.5 = 8 of 102; variance (11 - 64 / 102) / 102^2
    half = 1.959964 * (11 - 64 / 102) ** 0.5 / 102
    assert (comparison.difference_low, comparison.difference_high) == pytest.approx(
        (8 / 102 - half, 8 / 102 + half), abs=1e-6
    )


def test_the_interval_of_identical_predictions_has_a_width() -> None:
    comparison = compare_counts(90, 0, 0, 10)
    assert (comparison.difference, comparison.p_value) == (0, 1)
    assert comparison.difference_low < 0 < comparison.difference_high


def test_the_interval_covers_the_true_difference_in_95_percent_of_samples() -> None:
    random, covered = np.random.default_rng(0), 0
    for _ in range(2000):
        cells = random.multinomial(1000, (0.88, 0.05, 0.03, 0.04))
        comparison = compare_counts(*(int(cell) for cell in cells))
        covered += comparison.difference_low <= 0.02 <= comparison.difference_high
    assert 0.935 < covered / 2000 < 0.965  # three standard deviations of a share of 0.95 with n = 2000


@given(st.tuples(*[st.integers(0, 50)] * 4).filter(any))
def test_exchanging_the_models_changes_only_the_sign(counts: tuple[int, int, int, int]) -> None:
    both, first, second, neither = counts
    original, exchanged = compare_counts(both, first, second, neither), compare_counts(both, second, first, neither)
    assert original.p_value == pytest.approx(exchanged.p_value)
    assert original.difference == -exchanged.difference
    assert original.difference_low == pytest.approx(-exchanged.difference_high)
    assert -1 <= original.difference_low <= original.difference <= original.difference_high <= 1
