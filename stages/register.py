"""data/model + data/evaluation -> register -> data/registry: a version in MLflow's registry, and who is champion."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from cifar_resnet import images, params, registry, tracking
from cifar_resnet.errors import run
from cifar_resnet.files import digest, read_json, write_json
from cifar_resnet.product import CARD, WEIGHTS

PREPARED = "data/prepared"
MODEL = "data/model"
EVALUATION = "data/evaluation"
REGISTRY = "data/registry"


def main(root: Path) -> None:
    values = params.load(root / "params.yaml").register_
    card, metrics = read_json(root / MODEL / CARD), read_json(root / EVALUATION / "metrics.json")
    pixels = images.read_array(root / PREPARED / "test_images.npy")[:1].astype(np.uint8)
    test_data = digest(root / PREPARED / "test_images.npy")
    tracked = tracking.run_of(root, card["provenance"]["mlflow_run"])
    tags = tracking.origin(root) | {
        "accuracy": metrics["accuracy"],
        "accuracy_tta": metrics["accuracy_tta"],
        "parameters": metrics["parameters"],
        "train_data": card["provenance"]["train_data"],
        "test_data": test_data,
        "model": digest(root / MODEL / WEIGHTS),
    }
    example = registry.example_of(pixels)
    version = registry.register(tracked, root / MODEL, name=values.model_name, tags=tags, example=example)
    decision = registry.decide(
        tracked.client,
        name=values.model_name,
        version=version,
        run_id=tracked.id,
        accuracy=metrics["accuracy"],
        test_data=test_data,
    )
    write_json(root / REGISTRY / "decision.json", asdict(decision))
    outcome = "is the champion" if decision.champion else "is no champion"
    print(f"register: {values.model_name} version {version} {outcome}: {decision.reason} -> {REGISTRY}/decision.json")


if __name__ == "__main__":
    run(main)
