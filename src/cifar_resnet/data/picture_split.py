"""The training, validation and test images of own pictures: what the source does not divide is divided here."""

from itertools import count
from math import ceil

import numpy as np

from cifar_resnet.data.dataset import Images, Rows, first_copies
from cifar_resnet.data.raw_dataset import SPLITS, RawDataset
from cifar_resnet.errors import UserError

MAX_NAMED = 20  # pairs of copies in a message


def complete_splits(dataset: RawDataset, *, validation_share: float, test_share: float, seed: int) -> dict[str, Images]:
    """The images of "train", "validation" and "test", each in random order.

    Splits that the source lacks are drawn from its training images, at random and stratified by class. Images with the
    same pixels stay together.

    Args:
        validation_share: share of each class's different training images; 0 draws none.
        test_share: likewise, above 0.

    Raises:
        UserError: if a class has too few images.
    """
    for name, images in dataset.splits.items():
        check_every_class(name, images, dataset.classes)
    shares = {"validation": validation_share, "test": test_share}
    shares = {name: share for name, share in shares.items() if name not in dataset.splits and share > 0}
    train = dataset.splits["train"]
    drawn = {name: train.take(rows) for name, rows in draw_rows(train, dataset.classes, shares, seed).items()}
    splits = {"validation": train.take(np.arange(0))} | dataset.splits | drawn
    random = np.random.default_rng(seed)
    return {name: splits[name].take(random.permutation(len(splits[name]))) for name in SPLITS}


def draw_rows(images: Images, classes: tuple[str, ...], shares: dict[str, float], seed: int) -> dict[str, Rows]:
    """The rows of "train" and of the names in `shares`, in order.

    Raises:
        UserError: if a class has too few different images for one in each split. Copies of an image of another class
            count for the class that comes first.
    """
    random = np.random.default_rng(seed)
    copies = first_copies(images.pixels)
    is_first = copies == np.arange(len(images))
    split_of_row = np.zeros(len(images), dtype=np.intp)  # 0: train
    for label, class_name in enumerate(classes):
        different = random.permutation(np.flatnonzero(is_first & (images.labels == label)))
        sizes = split_sizes(len(different), shares)
        if min(sizes) < 1:
            raise UserError(too_few_text(class_name, len(different), shares))
        split_of_row[different] = np.repeat(np.arange(len(sizes)), sizes)
    return {name: np.flatnonzero(split_of_row[copies] == index) for index, name in enumerate(("train", *shares))}


def split_sizes(total: int, shares: dict[str, float]) -> list[int]:
    """The numbers of images for training and for each share, rounded."""
    sizes = [int(share * total + 0.5) for share in shares.values()]
    return [total - sum(sizes), *sizes]


def too_few_text(class_name: str, total: int, shares: dict[str, float]) -> str:
    if total == 0:
        return (
            f"class {class_name}: all its training pictures are copies of pictures of another class; delete the wrong "
            "ones or add others"
        )
    start = max(total + 1, ceil(0.5 / min(shares.values())))
    needed = next(size for size in count(start) if min(split_sizes(size, shares)) >= 1)
    named = " and ".join(f"preprocess.{name}_share {share}" for name, share in shares.items())
    pictures = "picture" if total == 1 else "pictures"
    return (
        f"class {class_name}: {total} different {pictures} found, at least {needed} needed with {named}; add pictures"
    )


def check_every_class(split: str, images: Images, classes: tuple[str, ...]) -> None:
    """
    Raises:
        UserError: if the split has no image of a class.
    """
    missing = np.flatnonzero(np.bincount(images.labels, minlength=len(classes)) == 0)
    if len(missing):
        names = ", ".join(classes[label] for label in missing[:MAX_NAMED])
        raise UserError(f"{split}: no picture of {names}; every class needs pictures in every split")


def check_copies(dataset: RawDataset) -> list[str]:
    """Describe the images that have the same pixels as an earlier one of the same split.

    Returns:
        At most one line each for copies across published splits, with another class, and with the same class.

    Raises:
        UserError: if an image of one split has the same pixels as one of another split. In a published benchmark this
            is described in a line as well.
    """
    pixels = np.concatenate([images.pixels for images in dataset.splits.values()])
    labels = np.concatenate([images.labels for images in dataset.splits.values()])
    split_of_row = np.repeat(np.arange(len(dataset.splits)), [len(images) for images in dataset.splits.values()])
    files = [picture.file for name in dataset.splits for picture in dataset.pictures[name]]
    copies = first_copies(pixels)
    rows = np.flatnonzero(copies != np.arange(len(copies)))
    is_across = split_of_row[rows] != split_of_row[copies[rows]]
    is_other_class = ~is_across & (labels[rows] != labels[copies[rows]])
    across, other_class, same_class = (
        [f"{files[copies[row]]} = {files[row]}" for row in rows[selected]]
        for selected in (is_across, is_other_class, ~is_across & ~is_other_class)
    )
    if across and not dataset.is_published:
        raise UserError(
            "the same picture, after scaling to 32 x 32 pixels, is in two splits; delete one of each pair: "
            + pairs_text(across)
        )
    lines = [f"{copies_text(len(across))} of images in another split, as published"] if across else []
    if other_class:
        lines.append(
            f"{copies_text(len(other_class))} in another class, delete the wrong ones: {pairs_text(other_class)}"
        )
    return lines + (
        [f"{copies_text(len(same_class))} in the same class: {pairs_text(same_class)}"] if same_class else []
    )


def copies_text(number: int) -> str:
    return "1 copy" if number == 1 else f"{number:,} copies"


def pairs_text(pairs: list[str]) -> str:
    more = f" and {len(pairs) - MAX_NAMED:,} more" if len(pairs) > MAX_NAMED else ""
    return ", ".join(pairs[:MAX_NAMED]) + more


def class_sizes_text(splits: dict[str, Images], classes: tuple[str, ...]) -> str:
    """One line about the sizes of the classes, over all splits."""
    labels = np.concatenate([images.labels for images in splits.values()])
    sizes = np.bincount(labels, minlength=len(classes))
    if sizes.min() == sizes.max():
        return f"{len(classes):,} classes of {sizes.min():,} images"
    smallest, largest = int(sizes.argmin()), int(sizes.argmax())
    return (
        f"{len(classes):,} classes of unequal size: {sizes[smallest]:,} images of {classes[smallest]} "
        f"to {sizes[largest]:,} of {classes[largest]}"
    )
