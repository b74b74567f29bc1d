"""data/model + data/prepared (test) -> evaluate -> data/evaluation: metrics, figures, every image's prediction."""

import csv
import time
from functools import partial
from pathlib import Path

import numpy as np

from cifar_resnet import figures, hardware, images, inference, metrics, params, product, records, resnet, tracking
from cifar_resnet.errors import run
from cifar_resnet.files import whole, write_json
from cifar_resnet.images import Labels

PREPARED = "data/prepared"
MODEL = "data/model"
EVALUATION = "data/evaluation"


def main(root: Path) -> None:
    hardware.keep_memory()
    values = params.load(root / "params.yaml").evaluate
    device = hardware.device()
    model, card = product.load(root / MODEL, device)
    test, classes = images.read(root / PREPARED, "test"), tuple(card["classes"])
    precision, _ = hardware.precision("auto", device)
    logits = partial(inference.predict, model, batch_size=values.batch_size, precision=precision)
    logits(test.pixels[: values.batch_size])  # the first batch pays for start-up
    start = time.perf_counter()
    plain = logits(test.pixels).numpy()
    seconds = time.perf_counter() - start
    augmented = logits(test.pixels, augmented=True).numpy()

    scores = metrics.classification(test.labels, plain, classes)
    found = {
        "accuracy": scores["accuracy"],
        "accuracy_tta": metrics.classification(test.labels, augmented, classes)["accuracy"],
        "log_loss": scores["log_loss"],
        "parameters": resnet.num_parameters(model),
        "multiply_adds": resnet.multiply_adds(model),
        "images_per_second": round(len(test) / seconds, 1),
        "training_seconds": card["provenance"]["seconds"],
    }
    write_json(root / EVALUATION / "metrics.json", found | {"per_class": scores["per_class"]})
    images.write_array(root / EVALUATION / "logits.npy", np.stack([plain, augmented]))
    write_predictions(root / EVALUATION / "predictions.csv", test.labels, plain.argmax(1), classes)
    pictures = {
        "learning_curves": figures.learning_curves(records.read(root / MODEL / "history.csv")),
        "confusion_matrix": figures.confusion_matrix(
            metrics.confusion(test.labels, plain.argmax(1), len(classes)), classes
        ),
        "class_scores": figures.class_scores(scores["per_class"]),
    }
    tracked = tracking.run_of(root, card["provenance"]["mlflow_run"])
    tracked.metrics({f"test_{name}": value for name, value in found.items()})
    for name, figure in pictures.items():
        path = root / EVALUATION / f"{name}.png"
        figure.savefig(path, dpi=110)
        tracked.artifact(path, "evaluation")
    print(f"evaluate: test accuracy {found['accuracy']:.2%}, {found['accuracy_tta']:.2%} with test-time augmentation; "
          f"log-loss {found['log_loss']:.3f}, {found['images_per_second']:,.0f} images/s -> {EVALUATION}")  # fmt: skip


def write_predictions(path: Path, labels: Labels, predicted: Labels, classes: tuple[str, ...]) -> None:
    with whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["index", "actual", "predicted"])
        for index, (actual, guess) in enumerate(zip(labels, predicted, strict=True)):
            table.writerow([index, classes[actual], classes[guess]])


if __name__ == "__main__":
    run(main)
