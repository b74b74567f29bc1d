"""Temperature scaling: how much to soften the logits so that confidences mean what they say."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

RANGE = (0.1, 10.0)


def temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The divisor of the logits that gives the least log-loss; 1 without images.

    Source: C. Guo et al., "On Calibration of Modern Neural Networks", 2017, section 4.2.

    Args:
        logits: (N, 10), of images that the network has not learned from.
        labels: (N,).
    """
    if not len(labels):
        return 1.0

    def log_loss(divisor: float) -> float:
        return float(-log_softmax(logits / divisor, axis=1)[np.arange(len(labels)), labels].mean())

    return round(float(minimize_scalar(log_loss, bounds=RANGE, method="bounded").x), 4)
