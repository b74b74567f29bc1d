"""One image's prediction for people: probabilities by class, how far to trust them, and what they depend on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cifar_resnet.data.dataset import Pixels
from cifar_resnet.inference.attribution import heat_overlay, occlusion_map
from cifar_resnet.inference.familiarity import familiarity
from cifar_resnet.inference.logits import Logits
from cifar_resnet.inference.model import Model
from cifar_resnet.inference.predictor import predict_logits
from cifar_resnet.inference.uncertainty import Reliability

BATCH_SIZE = 128


@dataclass(frozen=True)
class Explanation:
    """probabilities: calibrated, by class name; trust: a sentence; heat: uint8 (32, 32, 3), red where it matters."""

    probabilities: dict[str, float]
    trust: str
    heat: NDArray[np.uint8]


def explain(model: Model, reliability: Reliability, pixels: Pixels) -> Explanation:
    """Predict one image, uint8 (3, 32, 32), as `cifar-resnet predict` does, and explain the prediction."""

    def logits_fn(images: Pixels, *, augmented: bool = False) -> Logits:
        logits = predict_logits(
            model.network, images, batch_size=BATCH_SIZE, precision=model.precision, augmented=augmented
        )
        return np.asarray(logits)

    (probabilities,) = model.predict(pixels[None]).probabilities
    label = int(probabilities.argmax())
    score = familiarity(logits_fn(pixels[None], augmented=True)).item()
    trust = reliability.sentence(confidence=probabilities[label], familiarity=score)
    heat = heat_overlay(pixels, occlusion_map(logits_fn, pixels, label))
    return Explanation(dict(zip(model.classes, probabilities.tolist(), strict=True)), trust, heat)
