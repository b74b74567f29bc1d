"""The weights that come with the package: their folder, and their predictions on the test images.

`make pretrained` writes the folder. No stage lists it, so that other weights rerun nothing.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifar_resnet.data.dataset import Labels
from cifar_resnet.files import atomic_write

NAME = "pretrained"  # for --model and `cifar-resnet compare`
FOLDER = Path(__file__).parents[1] / NAME
PREDICTIONS_FILE = "predictions.npz"


def write_test_predictions(folder: Path, labels: Labels, probabilities: NDArray[np.float64]) -> None:
    """Write the predictions without test-time augmentation; 10,000 images need about 50 kB.

    Args:
        labels: the true classes, (N,).
        probabilities: calibrated, (N, C).
    """
    class_dtype = np.min_scalar_type(probabilities.shape[1] - 1)  # one byte for up to 256 classes
    arrays = {
        "labels": labels.astype(class_dtype),
        "predicted": probabilities.argmax(axis=1).astype(class_dtype),
        "confidence": probabilities.max(axis=1).astype(np.float32),
    }
    with atomic_write(folder / PREDICTIONS_FILE) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def read_test_predictions(folder: Path) -> tuple[Labels, Labels, NDArray[np.float32]]:
    """(true classes int64 (N,), predicted classes int64 (N,), confidence in the predicted class float32 (N,))."""
    with np.load(folder / PREDICTIONS_FILE, allow_pickle=False) as arrays:
        labels, predicted = (arrays[name].astype(np.int64) for name in ("labels", "predicted"))
        return labels, predicted, arrays["confidence"]
