"""Which parts of an image a prediction depends on."""

from collections.abc import Callable
from itertools import product

import numpy as np
from numpy.typing import NDArray

from cifar_resnet.data.dataset import Pixels
from cifar_resnet.inference.logits import Logits, softmax

SIDE = 32
PATCH, STRIDE = 8, 4  # pixels; every pixel is in four patches
GREY = 128
RED = np.array([220, 30, 30])


def occlusion_map(logits_fn: Callable[[Pixels], Logits], pixels: Pixels, label: int) -> NDArray[np.float64]:
    """How much a class depends on each pixel (32, 32): the mean fall of its log-probability under grey patches over it.

    Source: M. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks", 2014, section 4.2.

    Args:
        logits_fn: called once, with uint8 (82, 3, 32, 32).
        pixels: one image, uint8 (3, 32, 32).
        label: of the class.
    """
    starts = range(STRIDE - PATCH, SIDE, STRIDE)
    patches = np.zeros((len(starts) ** 2, SIDE, SIDE), bool)
    for patch, (top, left) in zip(patches, product(starts, starts), strict=True):
        patch[max(0, top) : top + PATCH, max(0, left) : left + PATCH] = True
    covered = np.where(patches[:, None], np.uint8(GREY), pixels)
    log_probabilities = np.log(softmax(logits_fn(np.concatenate([pixels[None], covered])))[:, label])
    falls = log_probabilities[0] - log_probabilities[1:]
    return np.asarray(np.tensordot(falls, patches, axes=1) / patches.sum(axis=0))


def heat_overlay(pixels: Pixels, importance: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The image in grey with its important pixels in red, uint8 (32, 32, 3).

    Args:
        pixels: uint8 (3, 32, 32).
        importance: (32, 32), of any scale; values below 0 count as 0.
    """
    share = np.maximum(importance, 0) / max(float(importance.max()), 1e-9)
    grey = pixels.mean(axis=0)[..., None]
    return np.asarray(np.rint(grey + 0.75 * share[..., None] * (RED - grey)), np.uint8)
