"""Find a model by the name that a user gives: a path, an alias, a version, a run or an MLflow URI."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cifar_resnet.device import Device, select_device
from cifar_resnet.errors import UserError
from cifar_resnet.inference.model import Model
from cifar_resnet.params.file import load_params

MODEL = "data/model"
URI_SCHEMES = ("models:/", "runs:/")


def load_named_model(source: str | Path | None, *, device: Device = "auto") -> Model:
    """See `cifar_resnet.load`."""
    target = select_device(device)
    with find_model(Path.cwd(), None if source is None else str(source)) as (folder, _):
        return Model(folder, target)


@contextmanager
def find_model(root: Path, requested: str | None) -> Iterator[tuple[Path, str]]:
    """Yield (folder with the model, its display name); a downloaded model is deleted when the block ends.

    Raises:
        UserError: if the model does not exist.
    """
    with ExitStack() as stack:
        if requested is not None and not requested.startswith(URI_SCHEMES) and (path := root / requested).exists():
            if path.is_file() and path.name != "model.safetensors":
                raise UserError(
                    f"{requested}: not a model; pass a model.safetensors with a model.json beside it, or the folder "
                    "of both"
                )
            yield (path if path.is_dir() else path.parent), requested
        elif requested is None:
            yield find_champion(root, stack) or (root / MODEL, MODEL)
        elif (registered := find_registered(root, requested, stack)) is not None:
            yield registered
        else:
            raise UserError(
                f"model {requested} not found: neither a path nor the champion, a version or a run in MLflow; "
                "`cifar-resnet registry list` lists the versions"
            )


def find_champion(root: Path, stack: ExitStack) -> tuple[Path, str] | None:
    """Like `find_registered`, for the champion; None, after a message, also if MLflow cannot provide it."""
    try:
        return find_registered(root, "champion", stack)
    except UserError as error:
        print(f"{error}; using {MODEL} instead", file=sys.stderr)
        return None


def find_registered(root: Path, requested: str, stack: ExitStack) -> tuple[Path, str] | None:
    """(folder, display name) of a registered model; None without the model, without MLflow or without params.yaml.

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
    from cifar_resnet.registry.reader import model_folder, open_registry
    from cifar_resnet.registry.versions import find_version

    client = stack.enter_context(open_registry(root))
    if client is None:
        return None
    if is_uri:
        return model_folder(requested, stack, root), requested
    name = load_params(root / "params.yaml").register_.model_name
    version = find_version(client, name, requested)
    if version is None:
        return None
    return model_folder(f"models:/{name}/{version.version}", stack, root), f"{name} version {version.version}"
