import numpy as np
import pytest
from conftest import tiny_images

from cifar_resnet.data.dataset import Pixels
from cifar_resnet.inference.classifier import Classifier
from cifar_resnet.inference.logits import Logits, augmented_logits, softmax

PIXELS = tiny_images(1, seed=2).pixels
SURE_ROWS = np.arange(10) % 2 == 0


def test_only_unsure_images_get_test_time_augmentation_and_its_temperature() -> None:
    calls: list[int] = []

    def logits_fn(pixels: Pixels) -> Logits:
        """Two classes; the pixel in the middle decides how sure the answer is, all pixels a little."""
        calls.append(len(pixels))
        first = np.where(pixels[:, 0, 16, 16] > 127, 10.0, 0.5) + pixels.mean(axis=(1, 2, 3)) / 1e4
        return np.stack([first, np.zeros(len(pixels))], axis=1).astype(np.float32)

    pixels = PIXELS.copy()
    pixels[:, :, 14:19, 14:19] = np.where(SURE_ROWS, 255, 0)[:, None, None, None]
    classifier = Classifier(logits_fn, ("cat", "dog"), 1.0, 2.0, mirror_views=True)
    probabilities = classifier.probabilities(pixels, batch_size=10)
    assert calls == [10, 5, 5, 5, 5, 5, 5]
    expected = softmax(logits_fn(pixels), 1.0)
    expected[~SURE_ROWS] = softmax(augmented_logits(logits_fn, pixels[~SURE_ROWS], mirror_views=True), 2.0)
    assert np.array_equal(probabilities, expected)


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (3, [3]), (4, [4]), (10, [4, 4, 2])])
def test_images_are_computed_in_batches(count: int, sizes: list[int]) -> None:
    calls: list[int] = []

    def logits_fn(pixels: Pixels) -> Logits:
        calls.append(len(pixels))
        return np.tile(np.array([9, 0], np.float32), (len(pixels), 1))

    classifier = Classifier(logits_fn, ("cat", "dog"), 1.0, 1.0, mirror_views=True)
    assert classifier.probabilities(PIXELS[:count], batch_size=4).shape == (count, 2)
    assert calls == sizes
