"""data/raw -> preprocess -> data/prepared: train, validation and test arrays, and their statistics."""

from pathlib import Path

import cifar_resnet.environment_variables  # noqa: F401
from cifar_resnet.data.cifar10 import CLASSES, OFFICIAL_URL, read_test, read_train
from cifar_resnet.data.dataset import Images, write_split
from cifar_resnet.data.picture_split import check_copies, class_sizes_text, complete_splits
from cifar_resnet.data.raw_dataset import has_raw_dataset, read_raw_dataset
from cifar_resnet.data.split import dataset_statistics, train_validation_split, validate_dataset
from cifar_resnet.errors import run
from cifar_resnet.files import write_json
from cifar_resnet.params.file import load_params
from cifar_resnet.params.schema import PreprocessParams

RAW = "data/raw"
PREPARED = "data/prepared"


def main(root: Path) -> None:
    params = load_params(root / "params.yaml").preprocess
    if has_raw_dataset(root / RAW):
        prepare_pictures(root, params)
    else:
        prepare_cifar10(root, params)


def prepare_cifar10(root: Path, params: PreprocessParams) -> None:
    num_classes = len(CLASSES)
    train, validation = train_validation_split(
        read_train(root / RAW), per_class=params.validation_per_class, num_classes=num_classes, seed=params.seed
    )
    splits = {"train": train, "validation": validation, "test": read_test(root / RAW)}
    validate_dataset(splits, num_classes=num_classes)
    write_prepared(root, splits, CLASSES, OFFICIAL_URL, "classes balanced, no duplicates")


def prepare_pictures(root: Path, params: PreprocessParams) -> None:
    dataset = read_raw_dataset(root / RAW)
    for line in check_copies(dataset):
        print(f"preprocess: {line}")
    splits = complete_splits(
        dataset, validation_share=params.validation_share, test_share=params.test_share, seed=params.seed
    )
    write_prepared(root, splits, dataset.classes, dataset.source, class_sizes_text(splits, dataset.classes))


def write_prepared(root: Path, splits: dict[str, Images], classes: tuple[str, ...], source: str, summary: str) -> None:
    for name, images in splits.items():
        write_split(root / PREPARED, name, images)
    write_json(root / PREPARED / "statistics.json", dataset_statistics(splits, classes=classes, source=source))
    counts = ", ".join(f"{len(images):,} {name}" for name, images in splits.items())
    print(f"preprocess: {counts} images -> {PREPARED}; {summary}")


if __name__ == "__main__":
    run(main)
