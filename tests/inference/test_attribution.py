from collections.abc import Callable

import numpy as np
import pytest

from cifar_resnet.data.dataset import Pixels
from cifar_resnet.inference.attribution import heat_overlay, occlusion_map
from cifar_resnet.inference.logits import Logits

WHITE = np.full((3, 32, 32), 255, np.uint8)


def brightness_of(rows: slice, columns: slice) -> Callable[[Pixels], Logits]:
    """A classifier whose class 1 depends on the brightness of one region only."""

    def logits_fn(images: Pixels) -> Logits:
        brightness = images[:, :, rows, columns].mean(axis=(1, 2, 3)) / 64
        return np.stack([np.zeros_like(brightness), brightness], axis=1).astype(np.float32)

    return logits_fn


@pytest.mark.parametrize(("top", "left"), [(0, 0), (12, 20), (28, 28)])
def test_the_pixels_that_the_class_depends_on_are_the_most_important(top: int, left: int) -> None:
    region = slice(top, top + 4), slice(left, left + 4)
    importance = occlusion_map(brightness_of(*region), WHITE, label=1)
    assert importance[region].min() == importance.max() > 0


def test_pixels_far_from_what_the_class_depends_on_have_no_importance() -> None:
    importance = occlusion_map(brightness_of(slice(0, 4), slice(0, 4)), WHITE, label=1)
    assert not importance[12:].any()
    assert not importance[:, 12:].any()


def test_what_speaks_against_a_class_has_negative_importance() -> None:
    importance = occlusion_map(brightness_of(slice(0, 4), slice(0, 4)), WHITE, label=0)
    assert importance[0, 0] == importance.min() < 0


def test_the_classifier_is_called_once_with_the_image_and_81_covered_copies() -> None:
    calls: list[Pixels] = []

    def logits_fn(images: Pixels) -> Logits:
        calls.append(images)
        return np.zeros((len(images), 10), np.float32)

    assert not occlusion_map(logits_fn, WHITE, label=3).any()
    (images,) = calls
    assert images.shape == (82, 3, 32, 32)
    assert (images[0] == 255).all()
    covered = (images[1:, 0] == 128).sum(axis=0)
    assert (covered == 4).all()  # every pixel equally often, at the border too


def test_the_most_important_pixels_are_red_and_unimportant_ones_grey() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
    importance = np.zeros((32, 32))
    importance[3, 4], importance[5, 6] = 2, -1
    heat = heat_overlay(pixels, importance)
    assert heat.shape == (32, 32, 3)
    assert heat.dtype == np.uint8
    red, green, blue = heat[3, 4].astype(int)
    assert red > green + 100
    assert green == blue
    importance[3, 4] = 0
    unimportant = heat_overlay(pixels, importance)
    assert (unimportant == np.rint(pixels.mean(axis=0))[..., None]).all()
