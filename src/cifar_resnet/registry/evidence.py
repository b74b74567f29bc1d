"""What a version of the registry is judged by: readable values in tags of their own, all others packed into one tag."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.entities.model_registry import ModelVersion

from cifar_resnet.evaluation.significance import CorrectMask
from cifar_resnet.files import file_hash
from cifar_resnet.versioning.provenance import training_tags

EVIDENCE_TAG = "evidence"
READABLE_TAGS = ("accuracy", "accuracy_tta", "parameters", "git_commit", "dvc_experiment")


def model_evidence(
    config: dict[str, Any], metrics: dict[str, Any], correct: CorrectMask, weights: Path
) -> dict[str, Any]:
    """What is known about a model.

    Args:
        config: the content of model.json.
        metrics: the content of metrics.json.
        correct: which test images are classified correctly, bool (N,).
        weights: the file of the weights.
    """
    provenance = config["provenance"]
    data = {name: provenance[name] for name in ("train_data", "test_data") if name in provenance}
    results = {name: metrics[name] for name in ("accuracy", "accuracy_tta", "parameters")}
    classes, mask = json.dumps(config["classes"]), encode_mask(correct)
    identity = {"classes": classes, "test_correct": mask, "model": file_hash(weights)}
    return training_tags(provenance) | data | results | identity


def pack_evidence(values: dict[str, str]) -> dict[str, str]:
    """The tags of a version: one for each of READABLE_TAGS, and one with all other values as JSON.

    A version is created together with its tags, so it is never without its evidence.
    """
    readable = {key: values[key] for key in READABLE_TAGS if key in values}
    others = {key: value for key, value in values.items() if key not in readable}
    return readable | {EVIDENCE_TAG: json.dumps(others)}


def read_evidence(version: ModelVersion) -> dict[str, Any]:
    """All values of a version. Versions of earlier code have each value in a tag of its own."""
    packed: dict[str, Any] = json.loads(version.tags.get(EVIDENCE_TAG, "{}"))
    values: dict[str, Any] = version.tags | packed
    return values


def encode_mask(correct: CorrectMask) -> str:
    """Encode which images are classified correctly, bool (N,), as text for a tag; 10,000 images need about 1 kB."""
    return f"{len(correct)}:{base64.b64encode(zlib.compress(np.packbits(correct).tobytes(), 9)).decode()}"


def decode_mask(text: str) -> CorrectMask:
    """The inverse of `encode_mask`."""
    count, packed = text.split(":")
    bits = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
    return np.unpackbits(bits, count=int(count)).astype(bool)
