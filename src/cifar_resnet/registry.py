"""The champion: register a version, and let it take the alias if it beats the present one on the same test data."""

from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import mlflow
import mlflow.artifacts
import numpy as np
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from cifar_resnet import serving
from cifar_resnet.errors import UserError
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
    """Log the model to its run and register it; returns the version. A model that is registered already keeps its own.

    Args:
        run: the run that trained the model.
        folder: holds model.safetensors and model.json.
        tags: put on the version; "model" is the hash of the weights, "test_data" of what they were measured on.
        example: uint8 (N, 32, 32, 3), stored as the input example.
    """
    for version in run.client.search_model_versions(f"name = '{name}'"):
        if all(version.tags.get(key) == tags[key] for key in ("model", "test_data")):
            return int(version.version)
    source, before = Path(serving.__file__), run.client.get_run(run.id).info
    with mlflow.start_run(run_id=run.id):
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(source),
            artifacts={"weights": str(folder / WEIGHTS), "card": str(folder / CARD)},
            code_paths=[str(source.parent)],
            signature=serving.SIGNATURE,
            input_example=example,
            pip_requirements=[f"{package}=={installed(package)}" for package in NEEDED],
        )
    run.client.set_terminated(run.id, before.status, before.end_time)  # the training ended then, not now
    if not run.client.search_registered_models(f"name = '{name}'"):
        run.client.create_registered_model(name)
    values = {key: str(value) for key, value in tags.items()}
    created = run.client.create_model_version(
        name, source=info.model_uri, run_id=run.id, tags=values, model_id=info.model_id
    )
    return int(created.version)


def decide(client: MlflowClient, *, name: str, version: int, run_id: str, accuracy: float, test_data: str) -> Decision:
    """Give `version` the alias champion if there is none yet or if it is more accurate on the same test data."""
    present = champion(client, name)
    wins, reason = compare(present, version, accuracy, test_data)
    if wins:
        client.set_registered_model_alias(name, CHAMPION, str(version))
    for key, value in (("decision_champion", wins), ("decision_reason", reason)):
        client.set_model_version_tag(name, str(version), key, str(value))
    return Decision(
        model_name=name,
        version=version,
        run_id=run_id,
        champion=wins,
        reason=reason,
        accuracy=accuracy,
        previous_champion=int(present.version) if present else None,
        previous_accuracy=float(present.tags["accuracy"]) if present else None,
    )


def compare(present: ModelVersion | None, version: int, accuracy: float, test_data: str) -> tuple[bool, str]:
    """(whether `version` is to be champion, why)."""
    if present is None:
        return True, "there was no champion"
    if int(present.version) == version:
        return True, "it was so before"
    if present.tags["test_data"] != test_data:
        return False, f"version {present.version} stays: it was measured on other test data"
    best = float(present.tags["accuracy"])
    relation = "above" if accuracy > best else "not above"
    return accuracy > best, f"accuracy {accuracy:.4f} is {relation} version {present.version}'s {best:.4f}"


def champion(client: MlflowClient, name: str) -> ModelVersion | None:
    version = client.get_registered_model(name).aliases.get(CHAMPION)
    return None if version is None else client.get_model_version(name, str(version))


def find(client: MlflowClient, name: str, wanted: str) -> ModelVersion | None:
    """The version that `wanted` names: "champion", a version's number, or the id of the run that trained it."""
    try:
        if wanted == CHAMPION:
            return champion(client, name)
        if wanted.isdecimal():
            return client.get_model_version(name, wanted)
    except MlflowException:  # no such model or version
        return None
    found = client.search_model_versions(f"name = '{name}'")
    return next((version for version in found if version.run_id == wanted), None)


def fetch(version: ModelVersion, folder: Path) -> None:
    """Bring the version's model.safetensors and model.json into `folder`.

    Raises:
        UserError: if MLflow cannot give them.
    """
    address = f"models:/{version.name}/{version.version}"
    try:
        for file in (WEIGHTS, CARD):
            mlflow.artifacts.download_artifacts(artifact_uri=f"{address}/artifacts/{file}", dst_path=str(folder))
        for file in (WEIGHTS, CARD):
            (folder / "artifacts" / file).replace(folder / file)
    except (OSError, MlflowException) as error:
        raise UserError(f"{address}: MLflow cannot give the model ({error})") from None


def example_of(pixels: Pixels) -> Pixels:
    """(N, 3, 32, 32) as the served model takes it: (N, 32, 32, 3)."""
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
