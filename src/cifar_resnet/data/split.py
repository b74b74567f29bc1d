"""The split into training and validation images, checks of the data, and dataset statistics."""

from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

from cifar_resnet.data.dataset import Images, Pixels, first_copies
from cifar_resnet.errors import UserError


def train_validation_split(images: Images, *, per_class: int, num_classes: int, seed: int) -> tuple[Images, Images]:
    """Split into (train, validation) with `per_class` random images of every class held out; 0 holds out none.

    Raises:
        UserError: if a class has too few images to leave any for training.
    """
    rows = np.arange(len(images))
    if per_class == 0:
        return images, images.take(rows[:0])
    fewest = int(np.bincount(images.labels, minlength=num_classes).min())
    if per_class >= fewest:
        raise UserError(
            f"preprocess.validation_per_class is {per_class}: must be below {fewest}, the images of a class"
        )
    train, validation = train_test_split(
        rows, test_size=per_class * num_classes, stratify=images.labels, random_state=seed, shuffle=True
    )
    return images.take(np.sort(train)), images.take(np.sort(validation))


def validate_dataset(splits: dict[str, Images], *, num_classes: int) -> None:
    """Check the labels, the class balance, and that no image occurs twice.

    Raises:
        UserError: if a label is out of range, the classes of a split differ in size, or two images are equal.
    """
    for name, images in splits.items():
        if len(images) and not 0 <= images.labels.min() <= images.labels.max() < num_classes:
            labels = f"{images.labels.min()}..{images.labels.max()}"
            raise UserError(f"{name}: labels {labels} found, 0..{num_classes - 1} allowed; run `dvc repro -f download`")
        counts = np.bincount(images.labels, minlength=num_classes)
        if counts.min() != counts.max():
            raise UserError(
                f"{name}: {counts.tolist()} images per class found, equal counts needed; run `dvc repro -f download`"
            )
    copies = first_copies(np.concatenate([images.pixels for images in splits.values()]))
    if num_copies := int((copies != np.arange(len(copies))).sum()):
        raise UserError(
            f"{num_copies} exact duplicates found within or across the splits, none allowed; "
            "run `dvc repro -f download`"
        )


def channel_statistics(pixels: Pixels) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, for pixel values scaled to 0..1.

    The standard deviation of a constant channel is given as 1: it becomes a divisor.
    """
    counts = np.stack([np.bincount(pixels[:, channel].ravel(), minlength=256) for channel in range(3)])
    values = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ values
    std = np.sqrt(np.maximum(share @ values**2 - mean**2, 0))
    return [round(float(value), 6) for value in mean], [round(float(value), 6) or 1.0 for value in std]


def dataset_statistics(splits: dict[str, Images], *, classes: tuple[str, ...], source: str) -> dict[str, Any]:
    """The content of statistics.json. The channel statistics are of the training images only."""
    mean, std = channel_statistics(splits["train"].pixels)
    return {
        "source": source,
        "classes": classes,
        "images": {name: len(images) for name, images in splits.items()},
        "images_per_class": {
            name: dict(zip(classes, np.bincount(images.labels, minlength=len(classes)).tolist(), strict=True))
            for name, images in splits.items()
        },
        "channel_mean": mean,
        "channel_std": std,
    }
