"""The champion: register a version, and let it take the alias if it beats the present one on the same test data."""

from dataclasses import asdict, dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from cifar_resnet import serving
from cifar_resnet.images import Pixels
from cifar_resnet.product import CARD, WEIGHTS
from cifar_resnet.tracking import Run

CHAMPION = "champion"
NEEDED = (
    *("torch", "torchvision", "mlflow", "numpy", "safetensors", "scikit-learn"),
    *("pydantic", "pyyaml", "pillow", "rich"),
)


@dataclass(frozen=True)
class Decision:
    """What became of a version, and why."""

    model_name: str
    version: int
    run_id: str
    champion: bool
    reason: str
    accuracy: float
    previous_champion: int | None
    previous_accuracy: float | None


def register(run: Run, folder: Path, *, name: str, tags: dict[str, Any], example: Pixels) -> int:
    """Log the model to its run and register it; returns the version.

    Args:
        run: the run that trained the model.
        folder: holds model.safetensors and model.json.
        tags: put on the version.
        example: uint8 (N, 32, 32, 3), stored as the input example.
    """
    source = Path(serving.__file__)
    with mlflow.start_run(run_id=run.id):
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(source),
            artifacts={"weights": str(folder / WEIGHTS), "card": str(folder / CARD)},
            code_paths=[str(source.parent)],
            signature=serving.SIGNATURE,
            input_example=example,
            pip_requirements=[f"{package}=={installed(package)}" for package in NEEDED],
            registered_model_name=name,
            await_registration_for=60,
        )
    version = int(info.registered_model_version)
    for key, value in tags.items():
        run.client.set_model_version_tag(name, str(version), key, str(value))
    return version


def decide(client: MlflowClient, *, name: str, version: int, run_id: str, accuracy: float, test_data: str) -> Decision:
    """Give `version` the alias champion if there is none yet or if it is more accurate on the same test data."""
    present = champion(client, name)
    known = present.tags if present else {}
    beaten = accuracy > float(known.get("accuracy", "nan"))
    if present is None:
        wins, reason = True, "there was no champion"
    elif known.get("test_data") != test_data:
        wins, reason = False, f"version {present.version} stays: it was measured on other test data"
    else:
        wins = beaten
        relation = "above" if wins else "not above"
        reason = f"accuracy {accuracy:.4f} is {relation} version {present.version}'s {float(known['accuracy']):.4f}"
    if wins:
        client.set_registered_model_alias(name, CHAMPION, str(version))
    decision = Decision(
        model_name=name,
        version=version,
        run_id=run_id,
        champion=wins,
        reason=reason,
        accuracy=accuracy,
        previous_champion=int(present.version) if present else None,
        previous_accuracy=float(known["accuracy"]) if "accuracy" in known else None,
    )
    for key, value in asdict(decision).items():
        if key in ("champion", "reason"):
            client.set_model_version_tag(name, str(version), f"decision_{key}", str(value))
    return decision


def champion(client: MlflowClient, name: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException:
        return None


def example_of(pixels: Pixels) -> Pixels:
    """(N, 3, 32, 32) as the served model takes it: (N, 32, 32, 3)."""
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
