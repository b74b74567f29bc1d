"""data/model + data/prepared (test) -> evaluate -> data/evaluation: metrics, figures, every image's logits."""

from functools import partial
from pathlib import Path

import numpy as np

from cifar_resnet import evaluation, hardware, images, inference, params, product, records, resnet, speed, tracking
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
    temperature = card.get("temperature", 1.0)
    precision, _ = hardware.precision("auto", device)
    answer = partial(inference.predict, model, precision=precision)
    plain = answer(test.pixels, batch_size=values.evaluate.batch_size).numpy()
    augmented = answer(test.pixels, batch_size=values.evaluate.batch_size, augmented=True).numpy()

    found = evaluation.numbers(test.labels, plain, augmented, classes, temperature)
    if values.evaluate.corruptions:
        found |= evaluation.robustness(answer, test, plain, batch_size=values.evaluate.batch_size)
    found |= {"parameters": resnet.num_parameters(model), "multiply_adds": resnet.multiply_adds(model)}
    found |= {"model_bytes": (root / MODEL / product.WEIGHTS).stat().st_size}
    found |= speed.measure(answer, test.pixels) | {"training_seconds": card["provenance"]["seconds"]}
    run_id = card["provenance"]["mlflow_run"]  # in a metric, `dvc exp show` shows it
    write_json(root / EVALUATION / "metrics.json", found | {"mlflow_run": run_id})
    images.write_array(root / EVALUATION / "logits.npy", np.stack([plain, augmented]))
    evaluation.write_predictions(root / EVALUATION / "predictions.csv", test.labels, plain.argmax(1), classes)

    pictures = evaluation.pictures(test, plain, found, classes, temperature)
    pictures |= evaluation.pictures_of_training(model, records.read(root / MODEL / "history.csv"))
    for name, figure in pictures.items():
        figure.savefig(root / EVALUATION / f"{name}.png", dpi=110)
    tracked = tracking.view_of(root, run_id, values.tracking)
    tracked.evaluated(root / EVALUATION)
    tracked.end()
    low, high = found["accuracy_interval"]
    print(f"evaluate: test accuracy {found['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%}), "
          f"{found['accuracy_tta']:.2%} with test-time augmentation")  # fmt: skip
    bears = f"{found['mean_corruption_accuracy']:.1%} under corruption, " if values.evaluate.corruptions else ""
    print(
        f"evaluate: {bears}log-loss {found['log_loss']:.3f}, {found['images_per_second']:,.0f} images/s -> {EVALUATION}"
    )


if __name__ == "__main__":
    run(main)
