import asyncio
import base64
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import quote

import mlflow
import numpy as np
import pytest
from conftest import tiny_images
from mlflow.pyfunc import scoring_server
from PIL import Image

from cifar_resnet.inference import classifier, image_decoder
from cifar_resnet.inference.backend import load_classifier
from cifar_resnet.inference.image_reader import Chunk
from cifar_resnet.inference.predictions import Counts, predict_images
from cifar_resnet.registry import served_model
from cifar_resnet.tracking.client import connect

PIXELS = tiny_images(1, seed=0).pixels
RAW = np.ascontiguousarray(PIXELS.transpose(0, 2, 3, 1))


def image_file(image_format: str = "PNG", size: tuple[int, int] = (90, 60)) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RAW[0]).resize(size).save(stream, image_format)
    return stream.getvalue()


def to_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def object_array(value: object) -> np.ndarray:  # type: ignore[type-arg]
    """The array that MLflow makes of the JSON of a request."""
    return np.array(value, dtype=object)


def test_raw_images_keep_every_pixel() -> None:
    for images in (RAW, object_array(RAW.tolist())):
        assert np.array_equal(served_model.parse_input(images), PIXELS)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF"])
def test_an_image_file_is_scaled_like_a_file_on_disk(image_format: str) -> None:
    content = image_file(image_format)
    (pixels,) = served_model.parse_input(object_array([to_base64(content)]))
    assert np.array_equal(pixels, image_decoder.read_image(io.BytesIO(content)))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], r"shape \(0,\) found; integers 0 to 255 of shape \(N, 32, 32, 3\), or N strings"),
        (PIXELS.tolist(), r"shape \(10, 3, 32, 32\) found"),
        (RAW[0].tolist(), r"shape \(32, 32, 3\) found"),
        ([RAW[0].tolist(), "text"], r"shape \(2,\) found"),
        (7, r"shape \(\) found"),
        ((RAW[:1] / 255).tolist(), "float64 found; integers"),
        ((RAW[:1].astype(int) + 200).tolist(), r"values from \d+ to \d+ found; integers"),
        ((RAW[:1] > 9).tolist(), "bool found"),
        ([[[["a"] * 3] * 32] * 32], "<U1 found"),
        ([[[[10**30] * 3] * 32] * 32], "object found"),
        (["not base64!"], "image 0: not base64: it contains '!'; A-Z a-z 0-9"),
        (["ä"], "image 0: not base64: it contains '\\\\xe4'"),
        (["QUI=QUI="], "image 0: not base64: it contains '='; .* = at the end"),
        (["QUJDR"], "image 0: not base64: 5 characters found; one more than a multiple of 4"),
        (["data:image/png,abc"], "image 0: not base64: a data: URL must start like data:image/png;base64,"),
        (["data:image/png;base64"], "image 0: not base64: a data: URL must start like"),
        (["\ud800" * 9], "image 0: not base64: it contains"),
        ([""], "image 0: not readable: empty file"),
        ([to_base64(image_file()), to_base64(b"GIF89a")], "image 1: not readable: truncated or damaged GIF"),
        ([to_base64(image_file()), to_base64(b"text")], r"image 1: .* format \(PNG, JPEG, WEBP, BMP, GIF, TIFF"),
        ([to_base64(image_file()[:99])], r"^image 0: not readable: "),
        (["A" * 20_000_001], "image 0: 20,000,001 characters found; at most 20,000,000 are allowed"),
        (["A"] * 2001, "2,001 images found; at most 2,000 are allowed per request"),
    ],
)
def test_invalid_input_is_rejected_with_the_reason(value: object, reason: str) -> None:
    with pytest.raises(served_model.InvalidInput, match=reason) as raised:
        served_model.parse_input(object_array(value))
    raised.value.message = f"Failed to predict data '{value}'"  # as MLflow does
    assert len(raised.value.serialize_as_json()) < 300
    assert raised.value.get_http_status_code() == 400


@pytest.mark.parametrize(
    "variant",
    [
        lambda text: "\n".join(text[start : start + 76] for start in range(0, len(text), 76)) + "\n",
        lambda text: "\r\n\t ".join(text[start : start + 60] for start in range(0, len(text), 60)),
        lambda text: text.rstrip("="),
        lambda text: text.rstrip("=") + "====",
        lambda text: text.replace("+", "-").replace("/", "_"),
        lambda text: f"data:image/png;base64,{text}",
        lambda text: f" DATA:image/png;charset=utf-8;BASE64,{quote(text, safe='')}\n",
    ],
)
def test_every_unambiguous_base64_is_read(variant: Callable[[str], str]) -> None:
    texts = [to_base64(image_file() + bytes(extra)) for extra in range(3)]  # with and without padding
    assert any("+" in text and "/" in text for text in texts)
    expected = served_model.parse_input(object_array(texts))
    assert np.array_equal(served_model.parse_input(object_array([variant(text) for text in texts])), expected)


def respond(app: Any, body: bytes, content_type: str) -> tuple[int, bytes]:
    """(status, body) of the scoring server's response to a POST, without a server."""
    messages: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    scope = {"type": "http", "method": "POST", "path": "/invocations", "query_string": b"", "root_path": "",
             "headers": [(b"content-type", content_type.encode())]}  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return messages[0]["status"], b"".join(message.get("body", b"") for message in messages)


GARBAGE = [
    (b"x" * 30_000_000, "application/json", b"valid JSON"),
    (b"\xff" * 30_000_000, "application/json", b"UnicodeDecodeError"),
    (b'{"inputs": ["' + b"A" * 30_000_000 + b'"]}', "application/json", b"30,000,000 characters found"),
    (b'{"inputs": ["' + b"!" * 19_000_000 + b'"]}', "application/json", b"it contains '!'"),
    (b'{"inputs": {"' + b"x" * 3_000_000 + b'": 1}}', "application/json", b""),
    (b'{"dataframe_split": "' + b"x" * 3_000_000 + b'"}', "application/json", b""),
    (b'{"' + b"x" * 3_000_000 + b'": 1}', "application/json", b"exactly one of the input fields"),
    (b"x" * 3_000_000, "text/csv", b""),
    (b'"' * 3_000_001, "text/csv", b""),
    (b"x" * 3_000_000, "application/vnd.apache.parquet", b""),
]


@pytest.mark.parametrize(("body", "content_type", "reason"), GARBAGE, ids=range(len(GARBAGE)))
def test_no_error_repeats_the_body_of_a_request(
    project: Path, body: bytes, content_type: str, reason: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")  # `init` sets it; this restores it
    app = scoring_server.init(mlflow.pyfunc.load_model(f"models:/{model_name(project)}"))
    status, response = respond(app, body, content_type)
    assert 400 <= status < 500
    assert len(response) < 5_000
    assert reason in response


def test_the_temperature_divides_the_logits(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "SURE", 0.0)  # no image gets test-time augmentation
    model = mlflow.pyfunc.load_model(f"models:/{model_name(project)}").unwrap_python_model()
    model.classifier = replace(model.classifier, temperature=1.0)
    first_records = model.predict(None, RAW)
    model.classifier = replace(model.classifier, temperature=2.0)
    second_records = model.predict(None, RAW)
    for first, second in zip(first_records, second_records, strict=True):
        assert first["label"] == second["label"]
        logits = np.log(first["probabilities"]) / 2
        assert second["probabilities"] == pytest.approx(np.exp(logits) / np.exp(logits).sum())
        assert sum(second["probabilities"]) == pytest.approx(1)


def model_name(project: Path) -> str:
    """Name and version of the registered model, as in a models:/ URI."""
    connect(project)
    return f"cifar10-resnet/{json.loads((project / 'data/registry/decision.json').read_text())['version']}"


def test_the_stored_input_example_gets_a_prediction(project: Path) -> None:
    model = mlflow.pyfunc.load_model(f"models:/{model_name(project)}")
    assert model.input_example.shape == (1, 32, 32, 3)
    [prediction] = model.predict(model.input_example)
    assert set(prediction) == {"label", "class_name", "probabilities"}


def test_the_served_model_predicts_like_the_predict_command_at_the_same_temperature(
    project: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "model.safetensors"
    weights.symlink_to(project / "data/model/model.safetensors")
    config = json.loads((project / "data/model/model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(config | {"temperature_tta": 3.0}))
    served, context = served_model.ServedModel(), cast("Any", SimpleNamespace(artifacts={"weights": str(weights)}))
    served.load_context(context)
    records = served.predict(context, PIXELS.transpose(0, 2, 3, 1))
    chunks = [Chunk(["image"] * 10, PIXELS, [])]
    predictions = predict_images(load_classifier(tmp_path), chunks, Counts(), strict=True, batch_size=10)
    for record, expected in zip(records, predictions, strict=True):
        assert (record["label"], record["class_name"]) == (expected.labels[0], expected.class_names[0])
        assert max(record["probabilities"]) == pytest.approx(expected.confidences[0])
