"""data/model + data/evaluation -> register -> data/registry: model card, version in MLflow, perhaps the champion."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import cifar_resnet.environment_variables  # noqa: F401
from cifar_resnet.data.dataset import read_array
from cifar_resnet.errors import UserError, run
from cifar_resnet.evaluation.significance import read_correct_mask
from cifar_resnet.files import atomic_write, file_hash, read_object, write_json
from cifar_resnet.models.saved_model import CONFIG_FILE, WEIGHTS_FILE
from cifar_resnet.params.file import load_params
from cifar_resnet.params.schema import RegisterParams, TrainParams
from cifar_resnet.registry.card import CARD_FILE, TABLES, read_card
from cifar_resnet.registry.evidence import model_evidence
from cifar_resnet.registry.promotion import Decision, promote_if_better
from cifar_resnet.registry.versions import register_version, require_files, to_input_example
from cifar_resnet.tracking.client import get_run, registry_lock, require_mlflow
from cifar_resnet.versioning.provenance import is_of_another_training, recorded_params

PREPARED = "data/prepared"
MODEL = "data/model"
EVALUATION = "data/evaluation"
REGISTRY = "data/registry"
INPUTS = (f"{PREPARED}/test_images.npy", f"{MODEL}/{WEIGHTS_FILE}", f"{MODEL}/{CONFIG_FILE}",
          f"{EVALUATION}/metrics.json", f"{EVALUATION}/predictions.csv", f"{EVALUATION}/reliability.csv",
          f"{PREPARED}/statistics.json",
          *(f"{EVALUATION}/{table}.csv" for table in TABLES))  # fmt: skip


def main(root: Path) -> None:
    params = load_params(root / "params.yaml")
    require_files(root, INPUTS)
    metrics, config = read_object(root / EVALUATION / "metrics.json"), read_object(root / MODEL / CONFIG_FILE)
    if is_of_another_training(metrics, config):
        raise UserError(f"{EVALUATION} is of another training than {MODEL}; run `dvc repro evaluate`")
    test_data = file_hash(root / PREPARED / "test_images.npy")
    if metrics.get("test_data", test_data) != test_data:  # evaluations of earlier code do not name their images
        raise UserError(f"{EVALUATION} is of other test images than those in {PREPARED}; run `dvc repro evaluate`")
    train_params = trained_with(root) or params.train
    card = read_card(params.register_.model_name, root / PREPARED, root / MODEL, root / EVALUATION, train_params)
    if not params.tracking.enabled:
        reason = "tracking.enabled is false in params.yaml, and the registry belongs to MLflow"
        write_outputs(root / REGISTRY, card, {"champion": False, "reason": reason})
        print(f"register: nothing is registered: {reason}")
        return
    decision = register(root, params.register_, card, test_data)
    write_outputs(root / REGISTRY, card, asdict(decision))
    outcome = "is the champion" if decision.champion else "is not the champion"
    print(f"register: {decision.model_name} version {decision.version} {outcome}: {decision.reason} "
          f"-> {REGISTRY}/decision.json, model-card.md")  # fmt: skip


def trained_with(root: Path) -> TrainParams | None:
    """Section `train` of the training that wrote data/model; params.yaml may be edited for the next one by now."""
    try:
        return TrainParams.model_validate(recorded_params(root)["train"])
    except (KeyError, ValueError):  # a training without DVC, or of a version with other keys
        return None


def write_outputs(folder: Path, card: str, decision: dict[str, Any]) -> None:
    with atomic_write(folder / CARD_FILE) as temporary:
        temporary.write_text(card, encoding="utf-8")
    write_json(folder / "decision.json", decision)


def register(root: Path, policy: RegisterParams, card: str, test_data: str) -> Decision:
    """Register the model with its evidence and its card, and promote it if the policy allows.

    Args:
        test_data: the hash of the test images.
    """
    config, metrics = read_object(root / MODEL / CONFIG_FILE), read_object(root / EVALUATION / "metrics.json")
    correct = read_correct_mask(root / EVALUATION / "predictions.csv")
    evidence = model_evidence(config, metrics, correct, root / MODEL / WEIGHTS_FILE) | {"test_data": test_data}
    pixels = read_array(root / PREPARED / "test_images.npy")[:1].astype(np.uint8)
    mlflow_run = get_run(root, config["provenance"])
    with registry_lock(mlflow_run.client, root), require_mlflow(mlflow_run.client):
        version = register_version(
            mlflow_run,
            root / MODEL,
            root / EVALUATION,
            name=policy.model_name,
            evidence=evidence,
            card=card,
            example=to_input_example(pixels),
        )
        return promote_if_better(mlflow_run.client, version, policy)


if __name__ == "__main__":
    run(main)
