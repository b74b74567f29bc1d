"""Find a model by the name that a user gives: a path, an alias, a version, a run or an MLflow URI."""

import os
import tempfile
from pathlib import Path

from cifar_resnet.device import Device, select_device
from cifar_resnet.errors import UserError
from cifar_resnet.inference.model import Model
from cifar_resnet.params.file import load_params

MODEL = "data/model"


def load_named_model(source: str | None, *, device: Device = "auto") -> Model:
    """See `cifar_resnet.load`."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, _ = find_model(Path.cwd(), source, Path(scratch))
        return Model(folder, select_device(device))


def find_model(root: Path, requested: str | None, scratch: Path) -> tuple[Path, str]:
    """(folder that holds the model, its name for people); a registered model is downloaded to `scratch`.

    Raises:
        UserError: if there is no such model.
    """
    if requested is not None and requested.startswith(("models:/", "runs:/")):
        from cifar_resnet.registry.versions import download_uri
        from cifar_resnet.tracking.client import connect

        connect(root)
        download_uri(requested, scratch)
        return scratch, requested
    if requested is not None and (path := root / requested).exists():
        if path.is_file() and path.name != "model.safetensors":
            raise UserError(
                f"{requested}: not a model; name a folder with model.safetensors and model.json, or the first of them"
            )
        return (path if path.is_dir() else path.parent), requested
    registered = download_registered(root, requested or "champion", scratch)
    if registered is None and requested is None:
        return root / MODEL, MODEL
    if registered is None:
        raise UserError(f"--model {requested}: neither a path nor a champion, version or run in MLflow")
    return scratch, registered


def download_registered(root: Path, requested: str, scratch: Path) -> str | None:
    """Name of a registered model, downloaded to `scratch`; None without such a model, database or params.yaml."""
    home = Path(os.environ.get("DVC_ROOT", root))
    if not (os.environ.get("MLFLOW_TRACKING_URI") or (home / "mlflow.db").exists()):
        return None
    if not (root / "params.yaml").exists():
        return None
    from cifar_resnet.registry.versions import download_version, find_version
    from cifar_resnet.tracking.client import connect

    name = load_params(root / "params.yaml").register_.model_name
    version = find_version(connect(root), name, requested)
    if version is None:
        return None
    download_version(version, scratch)
    return f"{name} version {version.version}"
