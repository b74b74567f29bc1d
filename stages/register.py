"""data/model + data/evaluation -> register -> data/registry: a version in MLflow's registry, and who is champion."""

import csv
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cifar_resnet import champion, images, lineage, params, registry, tracking
from cifar_resnet.errors import run
from cifar_resnet.files import digest, read_json, write_json
from cifar_resnet.product import CARD, WEIGHTS
from cifar_resnet.significance import Hits

PREPARED = "data/prepared"
MODEL = "data/model"
EVALUATION = "data/evaluation"
REGISTRY = "data/registry"


def main(root: Path) -> None:
    values = params.load(root / "params.yaml")
    if not values.tracking.enabled:
        reason = "tracking.enabled is false in params.yaml, and the registry is MLflow's"
        write_json(root / REGISTRY / "decision.json", {"champion": False, "reason": reason})
        print(f"register: nothing is registered: {reason}")
        return
    decision = decide(root, values.register_)
    write_json(root / REGISTRY / "decision.json", asdict(decision))
    outcome = "is the champion" if decision.champion else "is no champion"
    print(f"register: {decision.model_name} version {decision.version} {outcome}: {decision.reason} "
          f"-> {REGISTRY}/decision.json")  # fmt: skip


def decide(root: Path, policy: params.RegisterParams) -> champion.Decision:
    """Register the model with its evidence, and let the gate decide who is champion."""
    card, metrics = read_json(root / MODEL / CARD), read_json(root / EVALUATION / "metrics.json")
    pixels = images.read_array(root / PREPARED / "test_images.npy")[:1].astype(np.uint8)
    tracked = tracking.run_of(root, card["provenance"]["mlflow_run"])
    tags = lineage.origin(root) | {
        "accuracy": metrics["accuracy"],
        "accuracy_tta": metrics["accuracy_tta"],
        "parameters": metrics["parameters"],
        "train_data": card["provenance"]["train_data"],
        "test_data": digest(root / PREPARED / "test_images.npy"),
        "test_correct": champion.pack(read_hits(root / EVALUATION / "predictions.csv")),
        "model": digest(root / MODEL / WEIGHTS),
    }
    example = registry.example_of(pixels)
    with champion.locked(tracked.client, root), tracking.needed(tracked.client):
        version = registry.register(tracked, root / MODEL, name=policy.model_name, tags=tags, example=example)
        return champion.decide(tracked.client, version, policy)


def read_hits(path: Path) -> Hits:
    """Which test images evaluate found to be classified rightly, bool (N,)."""
    with path.open(newline="", encoding="utf-8") as stream:
        return np.array([row["actual"] == row["predicted"] for row in csv.DictReader(stream)])


if __name__ == "__main__":
    run(main)
