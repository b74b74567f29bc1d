import numpy as np
import pytest
from conftest import tiny_images

from cifar_resnet.data import split
from cifar_resnet.data.dataset import Images
from cifar_resnet.errors import UserError


def test_the_split_is_stratified_seeded_and_disjoint() -> None:
    images = tiny_images(10, seed=1)
    train, validation = split.train_validation_split(images, per_class=3, num_classes=10, seed=5)
    assert np.bincount(validation.labels).tolist() == [3] * 10
    assert np.bincount(train.labels).tolist() == [7] * 10
    assert len(np.unique(np.concatenate([train.pixels, validation.pixels]), axis=0)) == 100
    same_seed = split.train_validation_split(images, per_class=3, num_classes=10, seed=5)[1]
    other_seed = split.train_validation_split(images, per_class=3, num_classes=10, seed=6)[1]
    assert np.array_equal(same_seed.pixels, validation.pixels)
    assert not np.array_equal(other_seed.pixels, validation.pixels)


def test_with_zero_per_class_all_images_are_for_training() -> None:
    train, validation = split.train_validation_split(tiny_images(2, seed=1), per_class=0, num_classes=10, seed=0)
    assert (len(train), len(validation)) == (20, 0)


def test_a_split_without_training_images_is_an_error() -> None:
    with pytest.raises(UserError, match="validation_per_class is 4: must be below 4"):
        split.train_validation_split(tiny_images(4, seed=1), per_class=4, num_classes=10, seed=0)


def test_labels_out_of_range_unequal_classes_and_duplicates_are_errors() -> None:
    train, test = tiny_images(4, seed=1), tiny_images(4, seed=2)
    split.validate_dataset({"train": train, "test": test}, num_classes=10)
    duplicate = Images(np.concatenate([train.pixels[:1], test.pixels[1:]]), test.labels)
    with pytest.raises(UserError, match="1 exact duplicates found"):
        split.validate_dataset({"train": train, "test": duplicate}, num_classes=10)
    with pytest.raises(UserError, match=r"labels 0\.\.11 found"):
        split.validate_dataset(
            {"train": Images(train.pixels, np.where(train.labels == 3, 11, train.labels))}, num_classes=10
        )
    with pytest.raises(UserError, match="images per class found, equal counts needed"):
        split.validate_dataset({"train": train.take(np.arange(39))}, num_classes=10)


def test_channel_statistics_equal_those_of_numpy() -> None:
    pixels = tiny_images(5, seed=3).pixels
    mean, std = split.channel_statistics(pixels)
    assert mean == pytest.approx((pixels / 255).mean(axis=(0, 2, 3)), abs=1e-6)
    assert std == pytest.approx((pixels / 255).std(axis=(0, 2, 3)), abs=1e-6)


def test_a_constant_channel_has_a_standard_deviation_that_can_divide() -> None:
    pixels = tiny_images(5, seed=3).pixels
    for value in (0, 7, 255):
        pixels[:, 2] = value
        mean, std = split.channel_statistics(pixels)
        assert mean[2] == pytest.approx(value / 255, abs=1e-6)
        assert std[2] == 1
