"""data/model + data/prepared (test) -> evaluate -> data/evaluation: metrics, figures, every image's logits."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from cifar_resnet import (
    figures,
    hardware,
    images,
    inference,
    metrics,
    params,
    product,
    records,
    resnet,
    speed,
    tracking,
)
from cifar_resnet.errors import run
from cifar_resnet.files import whole, write_json
from cifar_resnet.images import Images, Labels
from cifar_resnet.metrics import Floats

PREPARED = "data/prepared"
MODEL = "data/model"
EVALUATION = "data/evaluation"
MISTAKES_SHOWN = 24


def main(root: Path) -> None:
    hardware.keep_memory()
    values = params.load(root / "params.yaml").evaluate
    device = hardware.device()
    model, card = product.load(root / MODEL, device)
    test, classes = images.read(root / PREPARED, "test"), tuple(card["classes"])
    precision, _ = hardware.precision("auto", device)
    answer = partial(inference.predict, model, precision=precision)
    plain = answer(test.pixels, batch_size=values.batch_size).numpy()
    augmented = answer(test.pixels, batch_size=values.batch_size, augmented=True).numpy()

    found = metrics.summary(test.labels, metrics.softmax(plain))
    with_tta = metrics.summary(test.labels, metrics.softmax(augmented))
    found |= {f"{name}_tta": with_tta[name] for name in ("accuracy", "accuracy_interval", "log_loss")}
    found |= {"parameters": resnet.num_parameters(model), "multiply_adds": resnet.multiply_adds(model)}
    found |= {"model_bytes": (root / MODEL / product.WEIGHTS).stat().st_size}
    found |= speed.measure(answer, test.pixels) | {"training_seconds": card["provenance"]["seconds"]}
    scores = metrics.per_class(test.labels, plain.argmax(1), classes)
    counts = metrics.confusion(test.labels, plain.argmax(1), len(classes))
    pairs = metrics.confused_pairs(counts, classes)
    write_json(root / EVALUATION / "metrics.json", found | {"confused_pairs": pairs, "per_class": scores})
    images.write_array(root / EVALUATION / "logits.npy", np.stack([plain, augmented]))
    write_predictions(root / EVALUATION / "predictions.csv", test.labels, plain.argmax(1), classes)

    tracked = tracking.run_of(root, card["provenance"]["mlflow_run"])
    tracked.metrics({f"test_{name}": value for name, value in found.items() if not isinstance(value, list)})
    pictures = test_figures(test, metrics.softmax(plain), scores, counts, classes)
    pictures["learning_curves"] = figures.learning_curves(records.read(root / MODEL / "history.csv"))
    first = model.stem[0]
    assert isinstance(first, nn.Conv2d)
    pictures["first_filters"] = figures.first_filters(first.weight.detach().cpu().numpy())
    for name, figure in pictures.items():
        path = root / EVALUATION / f"{name}.png"
        figure.savefig(path, dpi=110)
        tracked.artifact(path, "evaluation")
    low, high = found["accuracy_interval"]
    print(f"evaluate: test accuracy {found['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%}), "
          f"{found['accuracy_tta']:.2%} with test-time augmentation")  # fmt: skip
    print(f"evaluate: log-loss {found['log_loss']:.3f}, {found['images_per_second']:,.0f} images/s -> {EVALUATION}")


def test_figures(
    test: Images, probabilities: Floats, scores: dict[str, Any], counts: Any, classes: tuple[str, ...]
) -> dict[str, Any]:
    """The pictures of how the test images were classified."""
    worst = metrics.confident_mistakes(test.labels, probabilities, MISTAKES_SHOWN)
    captions = [
        f"{classes[test.labels[row]]}, not\n{classes[probabilities[row].argmax()]} ({probabilities[row].max():.0%})"
        for row in worst
    ]
    error = metrics.expected_calibration_error(test.labels, probabilities)
    return {
        "confusion_matrix": figures.confusion_matrix(counts, classes),
        "class_scores": figures.class_scores(scores),
        "reliability": figures.reliability(*metrics.calibration(test.labels, probabilities), error),
        "accuracy_coverage": figures.accuracy_coverage(*metrics.selective_accuracy(test.labels, probabilities)),
        "mistakes": figures.gallery(test.pixels[worst], captions),
    }


def write_predictions(path: Path, labels: Labels, predicted: Labels, classes: tuple[str, ...]) -> None:
    with whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["index", "actual", "predicted"])
        for index, (actual, guess) in enumerate(zip(labels, predicted, strict=True)):
            table.writerow([index, classes[actual], classes[guess]])


if __name__ == "__main__":
    run(main)
