"""A trained model on disk: model.safetensors (weights, without pickle) and model.json (config)."""

import math
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from cifar_resnet.errors import UserError
from cifar_resnet.files import atomic_write, read_json, write_json
from cifar_resnet.models import resnet
from cifar_resnet.models.resnet import ResNet
from cifar_resnet.params.schema import ModelParams

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "model.json"
RENAMED_KEYS = {"pool": "head_pool_kernel", "pooling": "head_pool"}  # architecture keys of files before 0.1.0
ADDED_KEYS = {"mirrored": False, "whitening_epsilon": 0.0005}  # and their values in files that lack them


def model_config(
    params: ModelParams, statistics: dict[str, Any], temperatures: dict[str, float], *, mirror_views: bool
) -> dict[str, Any]:
    """The content of model.json, except for its provenance.

    Args:
        statistics: the content of statistics.json.
        temperatures: divisors of the logits before the softmax: "temperature", and with test-time augmentation
            "temperature_tta".
        mirror_views: whether test-time augmentation shows mirror images as well.
    """
    return {
        "architecture": params.model_dump(),
        "normalisation": {"mean": statistics["channel_mean"], "std": statistics["channel_std"]},
        "classes": statistics["classes"],
        "input": "uint8 RGB (N, 3, 32, 32)",
        "mirror_views": mirror_views,
        **temperatures,
    }


def save_model(folder: Path, model: ResNet, config: dict[str, Any]) -> None:
    """Write the weights and the config into `folder`, each atomically."""
    content = save({name: value.contiguous() for name, value in model.state_dict().items()})
    with atomic_write(folder / WEIGHTS_FILE) as temporary:
        temporary.write_bytes(content)
    write_json(folder / CONFIG_FILE, config)


def load_model(folder: Path, target: torch.device) -> tuple[ResNet, dict[str, Any]]:
    """The network, in evaluation mode on the device `target`, and its config.

    Raises:
        UserError: if a file is missing or damaged, or if weights and config do not match.
    """
    try:
        config = upgrade_config(read_json(folder / CONFIG_FILE))
        check_values(config)
        params, normalisation = ModelParams(**config["architecture"]), config["normalisation"]
        model = resnet.build_model(
            params, normalisation["mean"], normalisation["std"], num_classes=len(config["classes"])
        )
        model.mirror_views = config["mirror_views"]
        weights = load_file(folder / WEIGHTS_FILE)
        model.load_state_dict({"std" if name == "deviation" else name: value for name, value in weights.items()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = shorten(str(error), 300, placeholder=" ...")
        raise UserError(f"{folder}: no usable model ({reason}); `dvc repro train` writes one to data/model") from None
    return model.to(target).eval(), config


def check_values(config: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: if predictions with these temperatures or class names would be wrong.
    """
    for augmented in (False, True):
        temperature = fitted_temperature(config, augmented=augmented)
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature {temperature} in {CONFIG_FILE}, a number above 0 needed")
    if not all(isinstance(name, str) for name in config["classes"]):
        raise ValueError(f"classes {config['classes']} in {CONFIG_FILE}, names needed")


def upgrade_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a model that an earlier version saved, with the present keys; registered models keep old ones."""
    architecture = ADDED_KEYS | {RENAMED_KEYS.get(key, key): value for key, value in config["architecture"].items()}
    normalisation = config["normalisation"]
    std = normalisation.get("std", normalisation.get("deviation"))
    return config | {
        "architecture": architecture,
        "normalisation": {"mean": normalisation["mean"], "std": std},
        "mirror_views": config.get("mirror_views", not architecture["mirrored"]),
    }


def fitted_temperature(config: dict[str, Any], *, augmented: bool) -> float:
    """The divisor of the logits, without or with test-time augmentation.

    Configs of early models have one temperature for both, or none, which means 1.
    """
    temperature = config.get("temperature", 1.0)
    return float(config.get("temperature_tta", temperature) if augmented else temperature)
