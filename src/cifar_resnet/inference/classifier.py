"""Calibrated probabilities from the logits of a network, on any runtime; imports no runtime."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cifar_resnet.data.dataset import Pixels
from cifar_resnet.inference.logits import Logits, augmented_logits, softmax

# An image below this confidence gets test-time augmentation. Then no validation image has another class than with
# test-time augmentation for all (docs/research.md).
SURE = 0.95


@dataclass(frozen=True)
class Classifier:
    """A trained network.

    Attributes:
        logits_fn: float32 (N, C) of uint8 (N, 3, 32, 32), without test-time augmentation; N is at most the batch size.
        classes: their names, by label.
        temperature: divisor of the logits without test-time augmentation.
        temperature_tta: divisor of the logits with it.
        mirror_views: whether test-time augmentation shows mirror images as well.
    """

    logits_fn: Callable[[Pixels], Logits]
    classes: tuple[str, ...]
    temperature: float
    temperature_tta: float
    mirror_views: bool

    def probabilities(self, pixels: Pixels, *, batch_size: int) -> NDArray[np.float64]:
        """Float64 (N, C) of uint8 (N, 3, 32, 32). Images whose first answer is unsure get test-time augmentation."""
        batches = [pixels[start : start + batch_size] for start in range(0, len(pixels), batch_size)]
        return np.concatenate([np.empty((0, len(self.classes))), *map(self._batch_probabilities, batches)])

    def _batch_probabilities(self, pixels: Pixels) -> NDArray[np.float64]:
        probabilities = softmax(self.logits_fn(pixels), self.temperature)
        unsure = probabilities.max(axis=1) < SURE
        if unsure.any():
            logits = augmented_logits(self.logits_fn, pixels[unsure], mirror_views=self.mirror_views)
            probabilities[unsure] = softmax(logits, self.temperature_tta)
        return probabilities
