import numpy as np

from cifar_resnet.inference.familiarity import UNFAMILIAR_SHARE, familiarity, fit_familiarity_threshold


def test_familiarity_is_the_log_of_the_sum_of_the_exponentials() -> None:
    logits = np.log(np.array([[1, 2, 3], [0.5, 0.5, 0.5]], np.float32))
    np.testing.assert_allclose(familiarity(logits), np.log([6, 1.5]), rtol=1e-6)


def test_large_logits_do_not_overflow() -> None:
    assert familiarity(np.array([[1000, 0]], np.float32)).tolist() == [1000]


def test_one_in_twenty_held_out_images_is_below_the_threshold() -> None:
    logits = np.random.default_rng(0).normal(size=(1000, 10)).astype(np.float32)
    threshold = fit_familiarity_threshold(logits)
    assert UNFAMILIAR_SHARE == 0.05
    assert threshold is not None
    assert (familiarity(logits) < threshold).sum() == 50


def test_without_enough_held_out_images_there_is_no_threshold() -> None:
    for count in (0, 1, 99):
        assert fit_familiarity_threshold(np.ones((count, 10), np.float32)) is None
