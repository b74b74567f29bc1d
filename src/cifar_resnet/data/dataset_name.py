"""The name of the images, for people, from the source that statistics.json records."""

from pathlib import PurePath

from cifar_resnet.data.cifar10 import OFFICIAL_URL

CIFAR10 = "CIFAR-10"


def dataset_name(source: str) -> str:
    """CIFAR-10, or the last part of another source: `flowers` of `data/own/flowers`."""
    return CIFAR10 if source == OFFICIAL_URL else PurePath(source).name or source
