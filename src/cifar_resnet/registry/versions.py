"""Versions in MLflow's model registry: each with the code, weights and package list that it needs for serving."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version as installed
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlflow
import mlflow.artifacts
import numpy as np
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository

from cifar_resnet.data.dataset import Pixels
from cifar_resnet.errors import UserError
from cifar_resnet.inference import pretrained
from cifar_resnet.inference.backend import EXPORTED_FILE
from cifar_resnet.inference.uncertainty import METRICS_FILE, RELIABILITY_FILE
from cifar_resnet.models.saved_model import CONFIG_FILE, WEIGHTS_FILE
from cifar_resnet.registry import served_model
from cifar_resnet.registry.card import fit_description
from cifar_resnet.registry.evidence import pack_evidence, read_evidence
from cifar_resnet.registry.promotion import CHALLENGER, CHAMPION
from cifar_resnet.tracking.client import none_if_missing
from cifar_resnet.tracking.run import Run

PIP_REQUIREMENTS = ("torch", "mlflow", "numpy", "safetensors", "pydantic", "pillow", "pillow_heif")
EXPORTED_REQUIREMENT = "onnxruntime"  # of versions with an exported file
TRAIN_IMAGES = "data/prepared/train_images.npy"
IDENTITY = ("model", "test_data")  # of a version
MODEL_DESCRIPTION = "Residual networks that classify images of 32x32 pixels. The alias champion marks the best version."
MODEL_FILES = {"MLmodel", "code", Path(served_model.__file__).name}
NETWORK_FILES = (WEIGHTS_FILE, CONFIG_FILE)
EVALUATION_FILES = (METRICS_FILE, RELIABILITY_FILE)  # versions of early commits do not have them


def register_version(
    run: Run, folder: Path, evaluation: Path, *, name: str, evidence: dict[str, Any], card: str, example: Pixels
) -> int:
    """Log the model to its run, register it, and return the version.

    A model that is already registered keeps its version and gets the tags, files and description that are missing.

    Args:
        run: the run that trained the model.
        folder: holds model.safetensors and model.json.
        evaluation: holds the metrics.json and reliability.csv of the model.
        evidence: values for the version's tags, see `pack_evidence`; "model" is the hash of the weights, "test_data" is
            the hash of the test images.
        card: Markdown, the description of the version.
        example: uint8 (N, 32, 32, 3), stored as the input example.
    """
    values = {key: str(value) for key, value in evidence.items()}
    registered = versions_of_model(run.client, name, values)
    if registered:
        add_missing_values(run.client, registered[0], values, card)
        restore_files(registered[0], folder, evaluation, example)
        return int(registered[0].version)
    info = log_model(run, folder, evaluation, example)
    with suppress(MlflowException):  # the name exists, or the next call reports the error
        run.client.create_registered_model(name, description=MODEL_DESCRIPTION)
    created = run.client.create_model_version(
        name,
        source=info.model_uri,
        run_id=run.id,
        tags=pack_evidence(values),
        description=fit_description(card),
        model_id=info.model_id,
    )
    return delete_duplicates(run.client, name, values, created)


def add_missing_values(client: MlflowClient, version: ModelVersion, values: dict[str, str], card: str) -> None:
    """Complete the tags and descriptions of a registered version; those that exist stay unchanged."""
    known = read_evidence(version)
    if values.keys() - known.keys():
        packed = pack_evidence({key: known.get(key, value) for key, value in values.items()})
        for key, value in packed.items():
            client.set_model_version_tag(version.name, version.version, key, value)
    if not version.description:
        client.update_model_version(version.name, version.version, description=fit_description(card))
    if not client.get_registered_model(version.name).description:
        client.update_registered_model(version.name, description=MODEL_DESCRIPTION)


def log_model(run: Run, folder: Path, evaluation: Path, example: Pixels) -> Any:
    """Log the model to its run: a safetensors file, the code that loads it, and its evaluation."""
    run_info = run.client.get_run(run.id).info
    try:
        with mlflow.start_run(run_id=run.id), package_code() as code, exported_file(folder) as exported:
            return mlflow.pyfunc.log_model(name="model", **model_options(folder, evaluation, example, code, exported))
    finally:  # start_run changes status and end time, but the training finished earlier
        run.client.set_terminated(run.id, "FINISHED", run_info.end_time)


@contextmanager
def package_code() -> Iterator[Path]:
    """Yield a copy of the package folder without the pretrained weights, which every version would store again."""
    package = Path(served_model.__file__).parents[1]
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / package.name
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__", pretrained.NAME))
        yield copy


@contextmanager
def exported_file(folder: Path) -> Iterator[Path | None]:
    """Yield an int8 export of the model in `folder`, with which MLflow serves faster than with torch.

    None without ONNX Runtime or the project's training images, or if int8 changes too many answers.
    """
    root = folder.parents[1]  # of data/model
    if find_spec("onnxruntime") is None or not (root / TRAIN_IMAGES).is_file():
        yield None
        return
    from cifar_resnet.inference.onnx_export import export_model

    with tempfile.TemporaryDirectory() as scratch:
        path: Path | None = Path(scratch, EXPORTED_FILE)
        try:
            export_model(folder, Path(scratch, EXPORTED_FILE), precision="int8", root=root)
        except UserError as error:
            print(f"register: MLflow will serve with torch, because the int8 export failed: {error}")
            path = None
        yield path


def model_options(folder: Path, evaluation: Path, example: Pixels, code: Path, exported: Path | None) -> dict[str, Any]:
    """Arguments of MLflow for a model and its evaluation, the package folder `code` and an exported file, if any."""
    source = Path(served_model.__file__)
    files = {"weights": folder / WEIGHTS_FILE, "config": folder / CONFIG_FILE}
    files |= {"metrics": evaluation / METRICS_FILE, "reliability": evaluation / RELIABILITY_FILE}
    files |= {"exported": exported} if exported else {}
    packages = (*PIP_REQUIREMENTS, EXPORTED_REQUIREMENT) if exported else PIP_REQUIREMENTS
    return {
        "python_model": str(source),
        "artifacts": {key: str(path) for key, path in files.items()},
        "code_paths": [str(code)],
        "signature": served_model.SIGNATURE,
        "input_example": example,
        "pip_requirements": [f"{package}=={installed(package)}" for package in packages],
    }


def restore_files(version: ModelVersion, folder: Path, evaluation: Path, example: Pixels) -> None:
    """Write the files of a version again if one of them is missing."""
    uri = f"models:/{version.name}/{version.version}"
    needed = {*NETWORK_FILES, *EVALUATION_FILES}
    if stored_files(uri) >= MODEL_FILES and stored_files(f"{uri}/artifacts") >= needed:
        return
    with tempfile.TemporaryDirectory() as name, package_code() as code, exported_file(folder) as exported:
        model = Model(run_id=version.run_id, model_id=version.source.rpartition("/")[2])
        options = model_options(folder, evaluation, example, code, exported)
        mlflow.pyfunc.save_model(f"{name}/model", mlflow_model=model, **options)
        target = ModelsArtifactRepository.get_underlying_uri(uri)
        get_artifact_repository(target).log_artifacts(f"{name}/model")
    print(f"register: the missing files of {version.name} version {version.version} are restored")


def stored_files(uri: str) -> set[str]:
    """Names of the files in a folder of a model; empty if there is none."""
    return {Path(file.path).name for file in mlflow.artifacts.list_artifacts(artifact_uri=uri) or ()}


def versions_of_model(client: MlflowClient, name: str, values: dict[str, str]) -> list[ModelVersion]:
    """The versions with the same weights and test data, the oldest first."""
    versions = client.search_model_versions(f"name = '{name}'")
    evidence = [(version, read_evidence(version)) for version in versions]
    same = [version for version, known in evidence if all(known.get(key) == values[key] for key in IDENTITY)]
    return sorted(same, key=lambda version: int(version.version))


def delete_duplicates(client: MlflowClient, name: str, values: dict[str, str], created: ModelVersion) -> int:
    """Delete the created version if there is an older one of the same model, and return the oldest version.

    On a server, another machine can register the same model at the same time.
    """
    oldest = int(versions_of_model(client, name, values)[0].version)
    if oldest != int(created.version):
        client.delete_model_version(name, created.version)
    return oldest


def find_version(client: MlflowClient, name: str, requested: str) -> ModelVersion | None:
    """Find a version by "champion" or "challenger", by its number, or by the id of the run that trained it."""
    if requested in (CHAMPION, CHALLENGER):
        return none_if_missing(lambda: client.get_model_version_by_alias(name, requested))
    if requested.isdecimal():
        return none_if_missing(lambda: client.get_model_version(name, requested))
    versions = client.search_model_versions(f"name = '{name}'")
    return next((version for version in versions if version.run_id == requested), None)


def download_version(version: ModelVersion, folder: Path) -> None:
    """Download the version's model.safetensors and model.json to `folder`, and its evaluation if it has one.

    Raises:
        UserError: if MLflow cannot provide them.
    """
    download_uri(f"models:/{version.name}/{version.version}", folder)


def download_uri(uri: str, folder: Path) -> None:
    """Like `download_version`, for a model's MLflow URI."""
    try:
        evaluation = sorted(stored_files(f"{uri}/artifacts").intersection(EVALUATION_FILES))
        for file in (*NETWORK_FILES, *evaluation):
            mlflow.artifacts.download_artifacts(artifact_uri=f"{uri}/artifacts/{file}", dst_path=str(folder))
        for file in (*NETWORK_FILES, *evaluation):
            (folder / "artifacts" / file).replace(folder / file)
    except (OSError, MlflowException) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{uri}: MLflow cannot provide the model ({reason}); if it is the model in data/model, "
            "`dvc repro --force --single-item register` restores it"
        ) from None


def require_files(root: Path, paths: Iterable[str]) -> None:
    """
    Raises:
        UserError: if a file does not exist; DVC does not check the outputs of other stages with --single-item.
    """
    missing = [path for path in paths if not (root / path).exists()]
    if missing:
        raise UserError(f"{', '.join(missing)}: not found; `dvc repro evaluate` restores or creates what is missing")


def to_input_example(pixels: Pixels) -> Pixels:
    """Convert (N, 3, 32, 32) to the served model's input, (N, 32, 32, 3)."""
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
