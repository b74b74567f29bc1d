"""data/raw -> preprocess -> data/prepared: train, validation and test arrays, and their statistics."""

from pathlib import Path

from cifar_resnet import cifar10, images, params, split
from cifar_resnet.errors import run
from cifar_resnet.files import write_json

RAW = "data/raw"
PREPARED = "data/prepared"


def main(root: Path) -> None:
    values = params.load(root / "params.yaml").preprocess
    classes = len(cifar10.CLASSES)
    train, validation = split.hold_out(
        cifar10.read_train(root / RAW), per_class=values.validation_per_class, classes=classes, seed=values.seed
    )
    splits = {"train": train, "validation": validation, "test": cifar10.read_test(root / RAW)}
    split.check(splits, classes=classes)
    for name, part in splits.items():
        images.write(root / PREPARED, name, part)
    statistics = split.describe(splits, classes=cifar10.CLASSES, source=cifar10.OFFICIAL)
    write_json(root / PREPARED / "statistics.json", statistics)
    counts = ", ".join(f"{len(part):,} {name}" for name, part in splits.items())
    print(f"preprocess: {counts} images -> {PREPARED}; classes balanced, no duplicates")


if __name__ == "__main__":
    run(main)
