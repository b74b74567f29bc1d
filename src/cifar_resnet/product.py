"""The finished model on disk: model.safetensors (weights, no pickle) and model.json (everything needed to use them)."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cifar_resnet import resnet
from cifar_resnet.errors import UserError
from cifar_resnet.files import read_json, whole, write_json
from cifar_resnet.params import ModelParams
from cifar_resnet.resnet import ResNet

WEIGHTS = "model.safetensors"
CARD = "model.json"


def card(params: ModelParams, statistics: dict[str, Any], temperatures: dict[str, float]) -> dict[str, Any]:
    """The content of model.json but for its provenance; `statistics` is what preprocess wrote, `temperatures` what
    divides the logits before the softmax: temperature, and temperature_tta after test-time augmentation."""
    return {
        "architecture": params.model_dump(),
        "normalisation": {"mean": statistics["channel_mean"], "deviation": statistics["channel_deviation"]},
        "classes": statistics["classes"],
        "input": "uint8 RGB (N, 3, 32, 32)",
        **temperatures,
    }


def save(folder: Path, model: ResNet, card: dict[str, Any]) -> None:
    """Write both files."""
    with whole(folder / WEIGHTS) as temporary:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary)
    write_json(folder / CARD, card)


def temperature(card: dict[str, Any], *, augmented: bool) -> float:
    """What divides the logits, without or with test-time augmentation. A card from before they were told apart has one
    for both, a still older one none, which is 1."""
    plain = card.get("temperature", 1.0)
    return float(card.get("temperature_tta", plain) if augmented else plain)


def load(folder: Path, device: torch.device) -> tuple[ResNet, dict[str, Any]]:
    """
    Raises:
        UserError: if a file is missing or the two do not belong together.
    """
    try:
        card = read_json(folder / CARD)
        normalisation = card["normalisation"]
        architecture = {"mirrored": False} | card["architecture"]  # a card from before there was a choice
        model = resnet.build(ModelParams(**architecture), normalisation["mean"], normalisation["deviation"])
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: no usable model ({error}); run `dvc repro train`") from None
    return model.to(device).eval(), card
