"""Find a model by the name that a user gives: a path, an alias, a version, a run, an MLflow URI, or pretrained.

Torch and MLflow are imported where they are needed: an exported file needs neither.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_resnet.errors import UserError
from cifar_resnet.files import read_json
from cifar_resnet.inference import pretrained
from cifar_resnet.inference.backend import EXPORTED_FILE, EXPORTED_SUFFIX, WEIGHTS_FILE
from cifar_resnet.inference.uncertainty import METRICS_FILE

if TYPE_CHECKING:
    from cifar_resnet.device import Device
    from cifar_resnet.inference.model import Model

MODEL = "data/model"
URI_SCHEMES = ("models:/", "runs:/")


class ModelNotFoundError(UserError):
    """The name is neither a path nor in MLflow."""


@dataclass(frozen=True)
class NamedModel:
    """A model that a user can name.

    Attributes:
        folder: holds model.safetensors and model.json; or the path of an exported file.
        name: for messages and for --model.
        evaluation: the folder with the metrics.json and reliability.csv of this model; None if there is none.
        accuracy: on the test set, without test-time augmentation; None if it is not known.
        classes: their names by label; empty if they are not known.
    """

    folder: Path
    name: str
    evaluation: Path | None = None
    accuracy: float | None = None
    classes: tuple[str, ...] = ()

    def __str__(self) -> str:
        known = "unknown" if self.accuracy is None else f"{self.accuracy:.2%}"
        return f"{self.name} (test accuracy {known})"


def load_named_model(source: str | Path | None, *, device: Device = "auto") -> Model:
    """See `cifar_resnet.load`.

    Raises:
        UserError: as in `find_model`, or if the model is an exported file.
    """
    from cifar_resnet.device import select_device
    from cifar_resnet.inference.model import Model

    root, target = Path.cwd(), select_device(device)
    with find_model(root, None if source is None else str(source)) as model:
        require_weights(model)
        loaded = Model(model.folder, target, name=model.name, accuracy=model.accuracy)
    if source is None:
        print(f"cifar_resnet.load: {model}", file=sys.stderr)
        if (better := better_model(root, model)) is not None:
            print(f"cifar_resnet.load: {better} is better: load({better.name!r})", file=sys.stderr)
    return loaded


@contextmanager
def find_model(root: Path, requested: str | None) -> Iterator[NamedModel]:
    """Yield the requested model or, without a request, the champion, data/model or the pretrained weights.

    A downloaded model is deleted when the block ends.

    Raises:
        ModelNotFoundError: if there is no such model.
        UserError: if it cannot be used.
    """
    with ExitStack() as stack:
        if requested is None:
            yield find_champion(root, stack) or default_model(root)
        elif requested == pretrained.NAME:
            yield evaluated_model(pretrained.FOLDER, pretrained.NAME)
        elif not requested.startswith(URI_SCHEMES) and (path := root / requested).exists():
            yield saved_model_at(path, requested)
        elif (registered := find_registered(root, requested, stack)) is not None:
            yield registered
        else:
            raise ModelNotFoundError(
                f"model {requested} not found in {root}: neither a path nor pretrained, the champion, the challenger, "
                "a version or a run in MLflow; `cifar-resnet registry list` lists the versions, and "
                "models:/NAME@champion names the champion of another model"
            )


def require_weights(model: NamedModel) -> None:
    """
    Raises:
        UserError: if the model is an exported file.
    """
    if model.folder.suffix == EXPORTED_SUFFIX:
        raise UserError(
            f"{model.name}: an exported file, only for `cifar-resnet predict --model`; name its model instead"
        )


def default_model(root: Path) -> NamedModel:
    """data/model if it has weights, otherwise the pretrained weights."""
    if any((root / MODEL / name).exists() for name in (WEIGHTS_FILE, EXPORTED_FILE)):
        return evaluated_model(root / MODEL, MODEL)
    return evaluated_model(pretrained.FOLDER, pretrained.NAME)


def saved_model_at(path: Path, name: str) -> NamedModel:
    """The model in a folder, or beside its weights file, or an exported file.

    Raises:
        UserError: if the path is another file.
    """
    if path.suffix == EXPORTED_SUFFIX:
        return NamedModel(path, name)
    if path.is_file() and path.name != WEIGHTS_FILE:
        raise UserError(
            f"{name}: not a model; pass a model.safetensors with a model.json beside it, the folder of both, or a "
            ".onnx file of `cifar-resnet export`"
        )
    return evaluated_model(path if path.is_dir() else path.parent, name)


def evaluated_model(folder: Path, name: str) -> NamedModel:
    """The model with its evaluation, which is in the same folder or, as for data/model, in `evaluation` beside it."""
    for evaluation in (folder, folder.resolve().parent / "evaluation"):
        metrics = matching_metrics(folder, evaluation)
        if metrics is not None:
            return NamedModel(folder, name, evaluation, metrics["accuracy"], read_classes(folder))
    return NamedModel(folder, name, classes=read_classes(folder))


def matching_metrics(folder: Path, evaluation: Path) -> dict[str, Any] | None:
    """The content of metrics.json if it is of the model in `folder`: both name the run that trained the model."""
    try:
        metrics: dict[str, Any] = read_json(evaluation / METRICS_FILE)
        run_id = read_json(folder / "model.json")["provenance"]["mlflow_run"]
        return metrics if metrics["mlflow_run"] == run_id and 0 <= metrics["accuracy"] <= 1 else None
    except (OSError, ValueError, KeyError, TypeError):  # missing, damaged, or of an early version
        return None


def read_classes(folder: Path) -> tuple[str, ...]:
    """The classes in a model's model.json; empty if it is missing or damaged."""
    try:
        return tuple(read_json(folder / "model.json")["classes"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def better_model(root: Path, used: NamedModel) -> NamedModel | None:
    """Of data/model and the pretrained weights, the one with the higher test accuracy, if `used` has a lower one.

    Both know the same classes: other accuracies say nothing.
    """
    models = (evaluated_model(root / MODEL, MODEL), evaluated_model(pretrained.FOLDER, pretrained.NAME))
    usable = [model for model in models if (model.folder / WEIGHTS_FILE).exists() and model.classes == used.classes]
    best = max(usable, key=lambda model: model.accuracy or 0.0, default=used)
    if best.accuracy is None or used.accuracy is None or best.accuracy <= used.accuracy:
        return None
    return best


def find_champion(root: Path, stack: ExitStack) -> NamedModel | None:
    """Like `find_registered`, for the champion; None, after a message, also if MLflow cannot provide it."""
    try:
        return find_registered(root, "champion", stack)
    except UserError as error:
        print(f"{error}; using {default_model(root).name} instead", file=sys.stderr)
        return None


def find_registered(root: Path, requested: str, stack: ExitStack) -> NamedModel | None:
    """A registered model; None without the model, without MLflow or without params.yaml.

    Args:
        requested: an MLflow URI, "champion", a version or a run.
        stack: deletes a download and closes the registry.
    """
    home = Path(os.environ.get("DVC_ROOT", root))
    if not (os.environ.get("MLFLOW_TRACKING_URI") or (home / "mlflow.db").exists()):
        return None
    is_uri = requested.startswith(URI_SCHEMES)
    if not is_uri and not (root / "params.yaml").exists():
        return None
    from cifar_resnet.params.file import load_params
    from cifar_resnet.registry.reader import model_folder, open_registry
    from cifar_resnet.registry.versions import find_version
    from cifar_resnet.tracking.client import require_mlflow

    client = stack.enter_context(open_registry(root))
    if client is None:
        return None
    if is_uri:
        return evaluated_model(model_folder(requested, stack, root), requested)
    name = load_params(root / "params.yaml").register_.model_name
    with require_mlflow(client):
        version = find_version(client, name, requested)
    if version is None:
        return None
    model = evaluated_model(
        model_folder(f"models:/{name}/{version.version}", stack, root), f"{name} version {version.version}"
    )
    return replace(model, accuracy=float(version.tags["accuracy"])) if "accuracy" in version.tags else model
