"""The model that MLflow serves: raw images or picture files in, probabilities out.

MLflow reads a request completely before it calls `predict`. MAX_IMAGES and MAX_CHARACTERS therefore limit the work,
not the size of a request; a public server needs a proxy that limits the request body.
"""

import base64
import json
import re
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import mlflow.models
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import Array

from cifar_resnet.data.dataset import Pixels
from cifar_resnet.errors import UserError
from cifar_resnet.inference import image_reader
from cifar_resnet.inference.backend import load_classifier
from cifar_resnet.inference.image_formats import FORMATS

BATCH_SIZE = 256
MAX_IMAGES = 2_000
MAX_CHARACTERS = 20_000_000  # of one picture file in base64: 15 MB
MAX_MESSAGE = 1_000  # characters of an error message
ACCEPTED = f"integers 0 to 255 of shape (N, 32, 32, 3), or N strings, each a file ({', '.join(FORMATS)}) in base64"
# With uint8, MLflow would truncate 0.5 to 0 and reject strings. With object, all input reaches `predict` unchanged.
SIGNATURE = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype(object), (-1,))]),
    outputs=Schema(
        [
            ColSpec(DataType.long, "label"),
            ColSpec(DataType.string, "class_name"),
            ColSpec(Array(DataType.double), "probabilities"),
        ]
    ),
)


class InvalidInput(MlflowException):  # type: ignore[misc]
    """Invalid input. Over HTTP: status 400 and the reason only; MLflow's own message would repeat all input."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, error_code=INVALID_PARAMETER_VALUE)
        self.reason = reason

    def serialize_as_json(self) -> str:
        return json.dumps({"error_code": self.error_code, "message": self.reason})


class ServedModel(PythonModel):  # type: ignore[misc]
    """Input: uint8 (N, 32, 32, 3), channels R, G, B; or N base64 strings of picture files."""

    def load_context(self, context: PythonModelContext) -> None:
        limit_error_messages()
        self.classifier = load_classifier(Path(context.artifacts["weights"]).parent)

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: np.ndarray,  # MLflow does not support type parameters here
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> list[dict[str, int | str | list[float]]]:
        """One record per image: label, class_name, and probabilities in the order of the classes.

        Raises:
            InvalidInput: if the input has neither of the two forms.
        """
        pixels = parse_input(np.asarray(model_input))
        probabilities, classes = self.classifier.probabilities(pixels, batch_size=BATCH_SIZE), self.classifier.classes
        return [
            {"label": int(label), "class_name": classes[label], "probabilities": row.tolist()}
            for label, row in zip(probabilities.argmax(axis=1), probabilities, strict=True)
        ]


def parse_input(images: np.ndarray[Any, Any]) -> Pixels:
    """Convert either form of input to uint8 (N, 3, 32, 32).

    Raises:
        InvalidInput: for any other input, for more than MAX_IMAGES images, and for none.
    """
    if images.ndim and len(images) > MAX_IMAGES:
        raise InvalidInput(f"{len(images):,} images found; at most {MAX_IMAGES:,} are allowed per request")
    if images.ndim == 1 and len(images) and all(isinstance(image, str) for image in images):
        return np.stack([decode_base64_image(text, f"image {index}") for index, text in enumerate(images)])
    if images.ndim != 4 or images.shape[1:] != (32, 32, 3) or not len(images):
        raise InvalidInput(f"shape {images.shape} found; {ACCEPTED} needed")
    values = np.array(images.tolist()) if images.dtype == object else images
    if values.dtype.kind not in "iu":
        raise InvalidInput(f"{values.dtype} found; {ACCEPTED} needed")
    if values.min() < 0 or values.max() > 255:
        raise InvalidInput(f"values from {values.min()} to {values.max()} found; {ACCEPTED} needed")
    return np.ascontiguousarray(values.astype(np.uint8).transpose(0, 3, 1, 2))


def decode_base64_image(text: str, name: str) -> Pixels:
    """Decode a picture in base64 to uint8 (3, 32, 32), scaled as `image_reader` scales a file.

    Raises:
        InvalidInput: if the text is too long, not base64, or not a readable picture.
    """
    content = decode_base64(text, name)
    try:
        return image_reader.read_picture(name, partial(BytesIO, content))
    except UserError as error:
        raise InvalidInput(str(error)) from None


def decode_base64(text: str, name: str) -> bytes:
    """Decode base64 in the standard or the URL-safe alphabet, with or without padding, white space and data: prefix.

    Raises:
        InvalidInput: if the text is too long or something else.
    """
    text = text.strip()
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise InvalidInput(f"{name}: not base64: a data: URL must start like data:image/png;base64,")
        text = unquote(text)
    digits = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    if len(digits) > MAX_CHARACTERS:
        raise InvalidInput(f"{name}: {len(digits):,} characters found; at most {MAX_CHARACTERS:,} are allowed")
    invalid = re.search(r"[^A-Za-z0-9+/]", digits)
    if invalid is not None:
        raise InvalidInput(
            f"{name}: not base64: it contains {invalid[0]!a}; A-Z a-z 0-9 + / - _ are allowed, = at the end"
        )
    if len(digits) % 4 == 1:
        raise InvalidInput(
            f"{name}: not base64: {len(digits):,} characters found; one more than a multiple of 4 encodes no bytes"
        )
    return base64.b64decode(digits + "=" * (-len(digits) % 4))


def limit_error_messages() -> None:
    """Shorten the texts of MLflow's errors in HTTP responses; some repeat the body of the request."""
    if getattr(MlflowException.serialize_as_json, "is_limited", False):
        return
    serialize: Callable[[MlflowException], str] = MlflowException.serialize_as_json

    def serialize_shortened(error: MlflowException) -> str:
        values = json.loads(serialize(error))
        return json.dumps({key: shorten(value) if isinstance(value, str) else value for key, value in values.items()})

    serialize_shortened.is_limited = True  # type: ignore[attr-defined]
    MlflowException.serialize_as_json = serialize_shortened


def shorten(text: str) -> str:
    """The text, without its middle if it is longer than MAX_MESSAGE."""
    half = MAX_MESSAGE // 2
    return text if len(text) <= MAX_MESSAGE else f"{text[:half]} ... {text[-half:]}"


mlflow.models.set_model(ServedModel())
