"""download -> data/raw: the six official CIFAR-10 files, proven by checksum."""

from pathlib import Path

from cifar_resnet import cifar10, params
from cifar_resnet.errors import run

RAW = "data/raw"


def main(root: Path) -> None:
    values = params.load(root / "params.yaml").download
    source = cifar10.fetch(values.sources, root / RAW, timeout_seconds=values.timeout_seconds)
    print(f"download: 60,000 images from {source} -> {RAW}, every MD5 is the publisher's")


if __name__ == "__main__":
    run(main)
