"""data/model + images without labels -> predict -> data/predictions: predictions.csv and submission.csv."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cifar_resnet import hardware, inference, inputs, params, product
from cifar_resnet.errors import run
from cifar_resnet.files import whole
from cifar_resnet.metrics import softmax

MODEL = "data/model"
PREDICTIONS = "data/predictions"


def main(root: Path) -> None:
    hardware.keep_memory()
    values = params.load(root / "params.yaml").predict
    pixels, names = inputs.read(root / values.input)
    device = hardware.device()
    model, card = product.load(root / MODEL, device)
    precision, _ = hardware.precision("auto", device)
    logits = inference.predict(model, pixels, batch_size=values.batch_size, precision=precision, augmented=True)
    probabilities = softmax(logits.numpy())
    labels = [int(label) for label in probabilities.argmax(axis=1)]
    rows = [
        (index, name, label, card["classes"][label], f"{row[label]:.6f}")
        for index, (name, label, row) in enumerate(zip(names, labels, probabilities, strict=True))
    ]
    write(root / PREDICTIONS / "predictions.csv", ("index", "file", "label", "class_name", "confidence"), rows)
    write(root / PREDICTIONS / "submission.csv", ("ID", "Labels"), enumerate(labels))
    print(f"predict: {len(labels):,} images from {values.input} -> {PREDICTIONS}/predictions.csv, submission.csv")


def write(path: Path, header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    with whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)


if __name__ == "__main__":
    run(main)
