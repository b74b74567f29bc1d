import numpy as np
import pytest
from conftest import tiny_images

from cifar_resnet.data import split
from cifar_resnet.data.dataset import Images
from cifar_resnet.errors import UserError


def test_the_hold_out_is_stratified_seeded_and_apart_from_training() -> None:
    images = tiny_images(10, seed=1)
    train, validation = split.train_validation_split(images, per_class=3, classes=10, seed=5)
    assert np.bincount(validation.labels).tolist() == [3] * 10
    assert np.bincount(train.labels).tolist() == [7] * 10
    assert len(np.unique(np.concatenate([train.pixels, validation.pixels]), axis=0)) == 100
    again = split.train_validation_split(images, per_class=3, classes=10, seed=5)[1]
    other = split.train_validation_split(images, per_class=3, classes=10, seed=6)[1]
    assert np.array_equal(again.pixels, validation.pixels)
    assert not np.array_equal(other.pixels, validation.pixels)


def test_nothing_held_out_leaves_everything_to_train_on() -> None:
    train, validation = split.train_validation_split(tiny_images(2, seed=1), per_class=0, classes=10, seed=0)
    assert (len(train), len(validation)) == (20, 0)


def test_a_hold_out_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="validation_per_class is 4: must be below 4"):
        split.train_validation_split(tiny_images(4, seed=1), per_class=4, classes=10, seed=0)


def test_broken_promises_are_errors() -> None:
    images, other = tiny_images(4, seed=1), tiny_images(4, seed=2)
    split.validate_dataset({"train": images, "test": other}, classes=10)
    twin = Images(np.concatenate([images.pixels[:1], other.pixels[1:]]), other.labels)
    with pytest.raises(UserError, match="1 images are exact duplicates"):
        split.validate_dataset({"train": images, "test": twin}, classes=10)
    with pytest.raises(UserError, match=r"labels 0\.\.11 found"):
        split.validate_dataset(
            {"train": Images(images.pixels, np.where(images.labels == 3, 11, images.labels))}, classes=10
        )
    with pytest.raises(UserError, match="classes must be equal in number"):
        split.validate_dataset({"train": images.take(np.arange(39))}, classes=10)


def test_channel_statistics_are_numpys() -> None:
    pixels = tiny_images(5, seed=3).pixels
    mean, deviation = split.channel_statistics(pixels)
    assert mean == pytest.approx((pixels / 255).mean(axis=(0, 2, 3)), abs=1e-6)
    assert deviation == pytest.approx((pixels / 255).std(axis=(0, 2, 3)), abs=1e-6)
