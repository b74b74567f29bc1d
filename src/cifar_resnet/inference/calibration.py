"""Temperature scaling: divide the logits so that confidences match accuracies."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from cifar_resnet.data.dataset import Images
from cifar_resnet.inference.predictor import predict_logits
from cifar_resnet.models.resnet import ResNet

RANGE = (0.1, 10.0)


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The divisor of the logits with the lowest log-loss; 1 without images.

    The labels are smoothed by 1 / (N + 1), as if one more image could belong to any class. Otherwise the confidences of
    a few images that are all classified correctly would be fitted to 100 %.

    Source: C. Guo et al., "On Calibration of Modern Neural Networks", 2017, section 4.2.

    Args:
        logits: (N, C), of images that the network was not trained on.
        labels: (N,).
    """
    if not len(labels):
        return 1.0

    smoothing = 1 / (len(labels) + 1)

    def log_loss(divisor: float) -> float:
        log_probabilities = log_softmax(logits / divisor, axis=1)
        of_labels = log_probabilities[np.arange(len(labels)), labels].mean()
        return float(-(1 - smoothing) * of_labels - smoothing * log_probabilities.mean())

    return round(float(minimize_scalar(log_loss, bounds=RANGE, method="bounded").x), 4)


def fit_temperatures(model: ResNet, images: Images, *, batch_size: int, precision: torch.dtype) -> dict[str, float]:
    """The temperatures without and with test-time augmentation, fitted on held-out images."""
    temperatures = {}
    for name, augmented in (("temperature", False), ("temperature_tta", True)):
        logits = predict_logits(model, images.pixels, batch_size=batch_size, precision=precision, augmented=augmented)
        temperatures[name] = fit_temperature(logits.numpy(), images.labels)
    return temperatures
