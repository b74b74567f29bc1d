"""The model that MLflow serves, as code over a safetensors file: raw uint8 images in, labels and probabilities out."""

from pathlib import Path
from typing import Any

import mlflow.models
import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

from cifar_resnet import hardware, inference, product
from cifar_resnet.images import Pixels
from cifar_resnet.metrics import softmax

SIGNATURE = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, 32, 32, 3), "images")]),
    outputs=Schema(
        [
            ColSpec(DataType.long, "label"),
            ColSpec(DataType.string, "class_name"),
            ColSpec(DataType.double, "confidence"),
        ]
    ),
)


class ServedModel(PythonModel):  # type: ignore[misc]
    """Input: uint8 (N, 32, 32, 3), or a dictionary with these under "images"."""

    def load_context(self, context: PythonModelContext) -> None:
        folder = Path(context.artifacts["weights"]).parent
        self.device = hardware.device()
        self.model, self.card = product.load(folder, self.device)
        self.precision, _ = hardware.precision("auto", self.device)

    def predict(self, context: PythonModelContext, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Records of label, class_name and confidence, one for each image."""
        images = np.asarray(model_input["images"] if isinstance(model_input, dict) else model_input)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3):
            raise ValueError(f"{images.dtype} {images.shape} found, uint8 (N, 32, 32, 3) needed")
        return answer(self.model, images, self.card["classes"], self.precision)


def answer(
    model: torch.nn.Module, images: Pixels, classes: list[str], precision: torch.dtype
) -> list[dict[str, int | str | float]]:
    pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    logits = inference.predict(model, pixels, batch_size=256, precision=precision, augmented=True)  # type: ignore[arg-type]
    probabilities = softmax(logits.numpy())
    labels = probabilities.argmax(axis=1)
    return [
        {"label": int(label), "class_name": classes[label], "confidence": float(row[label])}
        for label, row in zip(labels, probabilities, strict=True)
    ]


mlflow.models.set_model(ServedModel())
