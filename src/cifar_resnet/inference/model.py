"""A trained model for use in Python: classes and probabilities of images in memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cifar_resnet.device import select_dtype
from cifar_resnet.inference.backend import faster_export, torch_classifier
from cifar_resnet.models.saved_model import load_model


@dataclass(frozen=True)
class Predictions:
    """labels: int64 (N,); class_names: N names; probabilities: float64 (N, C), calibrated."""

    labels: NDArray[np.int64]
    class_names: list[str]
    probabilities: NDArray[np.float64]


class Model:
    """A saved network with its classes and temperature.

    Args:
        folder: holds model.safetensors and model.json.
        target: the device to compute on.
        name: for people, by default the folder.
        accuracy: on the test set, without test-time augmentation; None if it is not known.
    """

    def __init__(self, folder: Path, target: torch.device, *, name: str = "", accuracy: float | None = None) -> None:
        self.name, self.accuracy = name or str(folder), accuracy
        self.network, self.config = load_model(folder, target)
        self.precision, _ = select_dtype("auto", target)
        exported = faster_export(folder, "cpu") if target.type == "cpu" else None
        self.classifier = exported or torch_classifier(self.network, self.config, self.precision)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, accuracy={self.accuracy})"

    @property
    def classes(self) -> list[str]:
        """Names of the classes, by label."""
        return list(self.config["classes"])

    def predict(self, images: NDArray[Any], *, batch_size: int = 256) -> Predictions:
        """Classify images, those of which the network is unsure with test-time augmentation.

        Args:
            images: uint8 (N, 32, 32, 3) or (N, 3, 32, 32), channels R, G, B; N may be 0.
            batch_size: number of images per forward pass.

        Raises:
            ValueError: if the images have another type or shape.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] not in ((32, 32, 3), (3, 32, 32)):
            raise ValueError(f"images are {images.dtype} {images.shape}: uint8 (N, 32, 32, 3) or (N, 3, 32, 32) needed")
        pixels = images.transpose(0, 3, 1, 2) if images.shape[1:] == (32, 32, 3) else images
        pixels = np.require(pixels, requirements=["C_CONTIGUOUS", "WRITEABLE"])  # torch wraps no other arrays
        probabilities = self.classifier.probabilities(pixels, batch_size=batch_size)
        labels = probabilities.argmax(axis=1)
        return Predictions(labels, [self.classes[label] for label in labels], probabilities)
