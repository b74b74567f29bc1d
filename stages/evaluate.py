"""data/model + data/prepared (test) -> evaluate -> data/evaluation: metrics, tables, figures, every image's logits."""

from functools import partial
from pathlib import Path

import numpy as np

from cifar_resnet import (
    evaluation,
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
from cifar_resnet.files import write_json

PREPARED = "data/prepared"
MODEL = "data/model"
EVALUATION = "data/evaluation"


def main(root: Path) -> None:
    hardware.keep_memory()
    values = params.load(root / "params.yaml")
    device = hardware.device()
    model, card = product.load(root / MODEL, device)
    test, classes = images.read(root / PREPARED, "test"), tuple(card["classes"])
    temperature, temperature_tta = (product.temperature(card, augmented=augmented) for augmented in (False, True))
    precision, _ = hardware.precision("auto", device)
    batch_size = values.evaluate.batch_size
    answer = partial(inference.predict, model, precision=precision)
    plain = answer(test.pixels, batch_size=batch_size).numpy()
    augmented = answer(test.pixels, batch_size=batch_size, augmented=True).numpy()

    found = evaluation.numbers(test.labels, plain, augmented, temperature=temperature, temperature_tta=temperature_tta)
    probabilities = metrics.softmax(plain, temperature)
    tables = evaluation.tables(test.labels, probabilities, classes) | {"corruptions": []}
    if values.evaluate.corruptions:
        numbers, tables["corruptions"] = evaluation.robustness(answer, test, plain, batch_size=batch_size)
        found |= numbers
    found |= {"parameters": resnet.num_parameters(model), "multiply_adds": resnet.multiply_adds(model)}
    found |= {"model_bytes": (root / MODEL / product.WEIGHTS).stat().st_size}
    found |= speed.measure(answer, test.pixels) | {"training_seconds": card["provenance"]["seconds"]}
    run_id = card["provenance"]["mlflow_run"]  # in a metric, `dvc exp show` shows it
    write_json(root / EVALUATION / "metrics.json", found | {"mlflow_run": run_id})
    images.write_array(root / EVALUATION / "logits.npy", np.stack([plain, augmented]))
    for name, rows in tables.items():
        evaluation.write_table(root / EVALUATION / f"{name}.csv", rows)

    pictures = evaluation.pictures(test, probabilities, classes, found, tables)
    pictures |= evaluation.pictures_of_training(model, records.read(root / MODEL / "history.csv"))
    for name, figure in pictures.items():
        figure.savefig(root / EVALUATION / f"{name}.png", dpi=110)
    tracked = tracking.view_of(root, run_id, values.tracking)
    tracked.evaluated(root / EVALUATION)
    tracked.end()
    accuracy, rest = evaluation.lines(found)
    print(f"evaluate: {accuracy}\nevaluate: {rest} -> {EVALUATION}")


if __name__ == "__main__":
    run(main)
