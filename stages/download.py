"""download -> data/raw: the six official CIFAR-10 files, verified by checksum."""

from pathlib import Path

from cifar_resnet.data.download import download_cifar10
from cifar_resnet.errors import run
from cifar_resnet.params.file import load_params

RAW = "data/raw"


def main(root: Path) -> None:
    params = load_params(root / "params.yaml").download
    source = download_cifar10(params.sources, root / RAW, timeout_seconds=params.timeout_seconds)
    print(f"download: 60,000 images from {source} -> {RAW}, all checksums match")


if __name__ == "__main__":
    run(main)
