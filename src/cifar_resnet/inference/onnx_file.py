"""What a file of `cifar-resnet export` contains: names of its input and outputs, and metadata."""

import json
from dataclasses import dataclass, fields
from typing import Any

INPUT, LOGITS, PROBABILITIES = "images", "logits", "probabilities"
ADVICE = "`cifar-resnet export` writes a usable file"


@dataclass(frozen=True)
class Metadata:
    """What an exported file says about itself.

    Attributes:
        classes: names by label.
        temperature: divisor of the logits before the softmax; the output `probabilities` uses it.
        temperature_tta: the same with test-time augmentation.
        mirror_views: whether test-time augmentation shows mirror images as well.
        precision: float32 or int8.
        weights_md5: hash of the exported model.safetensors.
        provenance: where the weights come from, as in model.json.
        license: of the weights and the code.
    """

    classes: list[str]
    temperature: float
    temperature_tta: float
    mirror_views: bool
    precision: str
    weights_md5: str
    provenance: dict[str, Any]
    license: str

    def to_strings(self) -> dict[str, str]:
        """Every value as JSON, because ONNX stores texts."""
        return {key: json.dumps(value) for key, value in vars(self).items()}


def parse_metadata(strings: dict[str, str]) -> Metadata:
    """
    Raises:
        ValueError: if a key is missing or damaged; the message names the key.
    """
    if "mirrored" in strings:  # files before 0.1.0
        strings = {"mirror_views": "false" if strings["mirrored"] == "true" else "true"} | strings
    values = {}
    for key in (field.name for field in fields(Metadata)):
        try:
            values[key] = json.loads(strings[key])
        except (KeyError, ValueError):
            raise ValueError(f"its metadata has no usable {key}") from None
    return Metadata(**values)
