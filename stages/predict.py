"""data/model + images without labels -> predict -> data/predictions: predictions.csv and submission.csv."""

from pathlib import Path

import cifar_resnet.environment_variables  # noqa: F401
from cifar_resnet.device import disable_malloc_trim, select_device
from cifar_resnet.errors import run
from cifar_resnet.files import atomic_write
from cifar_resnet.inference.backend import load_torch
from cifar_resnet.inference.image_reader import read_images
from cifar_resnet.inference.predictions import Counts, predict_images, write_predictions_csv, write_submission
from cifar_resnet.params.file import load_params
from cifar_resnet.versioning.inputs import file_states, require_same_files

MODEL = "data/model"
PREDICTIONS = "data/predictions"


def main(root: Path) -> None:
    disable_malloc_trim()
    params = load_params(root / "params.yaml").predict
    states = file_states(root / params.input)
    chunks, counts = read_images([params.input], root, batch_size=params.batch_size), Counts()
    classifier = load_torch(root / MODEL, select_device())
    predictions = predict_images(classifier, chunks, counts, strict=params.strict, batch_size=params.batch_size)
    table = root / PREDICTIONS / "predictions.csv"
    with atomic_write(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        write_predictions_csv(stream, predictions)
        require_same_files(root / params.input, states)
    write_submission(root / PREDICTIONS / "submission.csv", table)
    print(f"predict: {counts.predicted:,} images from {params.input}{counts.skipped_text()} -> "
          f"{PREDICTIONS}/predictions.csv, submission.csv")  # fmt: skip


if __name__ == "__main__":
    run(main)
