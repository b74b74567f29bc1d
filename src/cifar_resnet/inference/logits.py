"""Test-time augmentation and probabilities, from the logits of any network; imports neither torch nor SciPy."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_resnet.data.dataset import Pixels

Logits = NDArray[np.float32]
SHIFTS = ((1, 0.25), (0, 0.125), (2, 0.125))  # first row and column of a view in the padded image, weight


def augmented_logits(logits_fn: Callable[[Pixels], Logits], pixels: Pixels, *, mirror_views: bool) -> Logits:
    """Weighted mean (N, C) of the logits of six views: image and mirror image, each centered (half of the weight) and
    shifted by one pixel up-left and down-right.

    Source: K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, section 3.5.

    Args:
        logits_fn: called with uint8 (N, 3, 32, 32), once for each view.
        pixels: uint8 (N, 3, 32, 32).
        mirror_views: False leaves out the mirror images, for a network that gives them the same logits, or that
            never saw one in training; three calls then suffice.
    """
    padded = np.pad(pixels, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    total = np.zeros((len(pixels), 1), np.float32)
    for offset, weight in SHIFTS:
        view = np.ascontiguousarray(padded[:, :, offset : offset + 32, offset : offset + 32])
        logits = logits_fn(view)
        mirror_logits = logits_fn(np.ascontiguousarray(view[..., ::-1])) if mirror_views else logits
        total = total + np.float32(weight) * (logits + mirror_logits)
    return total


def softmax(logits: NDArray[np.floating[Any]], temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities float64 (N, C) of logits (N, C); a temperature above 1 makes them less confident.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, section 4.2.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted / temperature)
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
