"""The names of a data set and of its classes, for people."""

from collections.abc import Sequence
from pathlib import PurePath

from cifar_resnet.data.cifar10 import OFFICIAL_URL

CIFAR10 = "CIFAR-10"
MAX_LISTED = 3


def dataset_name(source: str) -> str:
    """CIFAR-10, or the last part of another source: `flowers` of `data/own/flowers`.

    Args:
        source: that of statistics.json.
    """
    return CIFAR10 if source == OFFICIAL_URL else PurePath(source).name or source


def list_classes(classes: Sequence[str]) -> str:
    """The first classes and the number of the others: `airplane, automobile, bird and 7 more`."""
    more = len(classes) - MAX_LISTED
    return ", ".join(classes[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
