"""Whether an image looks like the training images; imports neither torch nor SciPy."""

import numpy as np
from numpy.typing import NDArray

from cifar_resnet.inference.logits import Logits

UNFAMILIAR_SHARE = 0.05  # of the held-out images that are below the threshold: the rate of false alarms
MIN_IMAGES = 100  # with fewer, a threshold has several times the intended false alarms


def familiarity(logits: Logits) -> NDArray[np.float64]:
    """Scores (N,) of logits (N, C); the lower, the less an image looks like the training images.

    Source: the negative energy of W. Liu et al., "Energy-based Out-of-distribution Detection", 2020, section 3.
    """
    return np.asarray(np.logaddexp.reduce(logits.astype(np.float64), axis=1))


def fit_familiarity_threshold(logits: Logits) -> float | None:
    """The familiarity that all but UNFAMILIAR_SHARE of the images reach; None if so few images cannot show it.

    Args:
        logits: (N, C), of images that the network was not trained on.
    """
    if len(logits) < MIN_IMAGES:
        return None
    return float(np.quantile(familiarity(logits), UNFAMILIAR_SHARE))
