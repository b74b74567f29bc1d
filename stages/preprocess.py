"""data/raw -> preprocess -> data/prepared: train, validation and test arrays, and their statistics."""

from pathlib import Path

from cifar_resnet.data.cifar10 import CLASSES, OFFICIAL_URL, read_test, read_train
from cifar_resnet.data.dataset import write_split
from cifar_resnet.data.split import dataset_statistics, train_validation_split, validate_dataset
from cifar_resnet.errors import run
from cifar_resnet.files import write_json
from cifar_resnet.params.file import load_params

RAW = "data/raw"
PREPARED = "data/prepared"


def main(root: Path) -> None:
    params = load_params(root / "params.yaml").preprocess
    num_classes = len(CLASSES)
    train, validation = train_validation_split(
        read_train(root / RAW), per_class=params.validation_per_class, num_classes=num_classes, seed=params.seed
    )
    splits = {"train": train, "validation": validation, "test": read_test(root / RAW)}
    validate_dataset(splits, num_classes=num_classes)
    for name, images in splits.items():
        write_split(root / PREPARED, name, images)
    write_json(root / PREPARED / "statistics.json", dataset_statistics(splits, classes=CLASSES, source=OFFICIAL_URL))
    counts = ", ".join(f"{len(images):,} {name}" for name, images in splits.items())
    print(f"preprocess: {counts} images -> {PREPARED}; classes balanced, no duplicates")


if __name__ == "__main__":
    run(main)
