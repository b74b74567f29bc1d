"""Register the pretrained weights, with the evidence that comes with them."""

from pathlib import Path

import numpy as np

from cifar_resnet.data.dataset_name import list_classes
from cifar_resnet.errors import UserError
from cifar_resnet.files import read_json, read_object
from cifar_resnet.inference import pretrained
from cifar_resnet.inference.uncertainty import METRICS_FILE
from cifar_resnet.models.saved_model import CONFIG_FILE, WEIGHTS_FILE
from cifar_resnet.params.schema import RegisterParams
from cifar_resnet.registry.card import CARD_FILE
from cifar_resnet.registry.evidence import model_evidence
from cifar_resnet.registry.promotion import Decision, promote_if_better
from cifar_resnet.registry.versions import register_version
from cifar_resnet.tracking.client import get_run, registry_lock, require_mlflow


def add_pretrained(root: Path, policy: RegisterParams) -> Decision:
    """Register the pretrained weights and promote them if the policy allows. Needs neither data nor a training.

    Raises:
        UserError: if the weights are missing, if the project's data has other classes, or if MLflow cannot be used.
    """
    try:
        config, metrics = (read_json(pretrained.FOLDER / name) for name in (CONFIG_FILE, METRICS_FILE))
        card = (pretrained.FOLDER / CARD_FILE).read_text(encoding="utf-8")
        labels, predicted, _ = pretrained.read_test_predictions(pretrained.FOLDER)
    except OSError as error:
        raise UserError(f"{error.filename}: not found; install the package again") from None
    require_classes(root, policy.model_name, config["classes"])
    evidence = model_evidence(config, metrics, labels == predicted, pretrained.FOLDER / WEIGHTS_FILE)
    mlflow_run = get_run(root, config["provenance"], is_local=False)
    mean = np.array(config["normalisation"]["mean"])
    example = np.full((1, 32, 32, 3), 255 * mean, np.uint8)  # a picture of the mean color
    with registry_lock(mlflow_run.client, root), require_mlflow(mlflow_run.client):
        version = register_version(
            mlflow_run,
            pretrained.FOLDER,
            pretrained.FOLDER,
            name=policy.model_name,
            evidence=evidence,
            card=card,
            example=example,
        )
        mlflow_run.log_evaluation(pretrained.FOLDER)
        return promote_if_better(mlflow_run.client, version, policy)


def require_classes(root: Path, name: str, known: list[str]) -> None:
    """Check that the project's data has the classes that the pretrained weights know, if there is any data."""
    path = root / "data/prepared/statistics.json"
    classes = read_object(path, "classes")["classes"] if path.exists() else known
    if classes != known:
        raise UserError(
            f"the pretrained weights know other classes ({list_classes(known)}) than data/prepared "
            f"({list_classes(classes)}), so they are not added to {name}; `cifar-resnet predict --model pretrained` "
            "uses them without the registry"
        )
