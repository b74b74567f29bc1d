"""The model that MLflow serves, as code over a safetensors file: raw uint8 images in, labels and probabilities out."""

from pathlib import Path
from typing import Any

import mlflow.models
import numpy as np
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

from cifar_resnet import hardware, inference, product
from cifar_resnet.metrics import softmax

BATCH_SIZE = 256
SIGNATURE = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, 32, 32, 3))]),
    outputs=Schema(
        [
            ColSpec(DataType.long, "label"),
            ColSpec(DataType.string, "class_name"),
            ColSpec(DataType.double, "confidence"),
        ]
    ),
)


class ServedModel(PythonModel):  # type: ignore[misc]
    """Input: uint8 (N, 32, 32, 3), channels R, G, B."""

    def load_context(self, context: PythonModelContext) -> None:
        folder = Path(context.artifacts["weights"]).parent
        self.device = hardware.device()
        self.model, self.card = product.load(folder, self.device)
        self.precision, _ = hardware.precision("auto", self.device)

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: np.ndarray,  # MLflow knows the bare name only
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> list[dict[str, int | str | float]]:
        """Records of label, class_name and confidence, one for each image."""
        images = np.asarray(model_input)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3):
            raise ValueError(f"{images.dtype} {images.shape} found, uint8 (N, 32, 32, 3) needed")
        pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        logits = inference.predict(self.model, pixels, batch_size=BATCH_SIZE, precision=self.precision, augmented=True)
        classes, probabilities = self.card["classes"], softmax(logits.numpy(), self.card.get("temperature", 1.0))
        return [
            {"label": int(label), "class_name": classes[label], "confidence": float(row[label])}
            for label, row in zip(probabilities.argmax(axis=1), probabilities, strict=True)
        ]


mlflow.models.set_model(ServedModel())
