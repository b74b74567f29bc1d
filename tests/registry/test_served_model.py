import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mlflow
import numpy as np
import pytest
from conftest import tiny_images
from PIL import Image

from cifar_resnet.inference import image_reader
from cifar_resnet.inference.image_reader import Chunk
from cifar_resnet.inference.predictions import Counts, predict_images
from cifar_resnet.registry import served_model
from cifar_resnet.tracking.client import connect

PIXELS = tiny_images(1, seed=0).pixels
RAW = np.ascontiguousarray(PIXELS.transpose(0, 2, 3, 1))


def photograph(kind: str = "PNG", size: tuple[int, int] = (90, 60)) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RAW[0]).resize(size).save(stream, kind)
    return stream.getvalue()


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def objects(value: object) -> np.ndarray:  # type: ignore[type-arg]
    """As MLflow reads the JSON of a request."""
    return np.array(value, dtype=object)


def test_raw_images_keep_every_pixel() -> None:
    for given in (RAW, objects(RAW.tolist())):
        assert np.array_equal(served_model.parse_input(given), PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_photograph_is_made_small_as_predict_does(kind: str) -> None:
    content = photograph(kind)
    assert np.array_equal(
        served_model.parse_input(objects([text(content)]))[0], image_reader.read_image(io.BytesIO(content))
    )


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], r"shape \(0,\) found; integers 0 to 255 of shape \(N, 32, 32, 3\), or N texts"),
        (PIXELS.tolist(), r"shape \(10, 3, 32, 32\) found"),
        (RAW[0].tolist(), r"shape \(32, 32, 3\) found"),
        ([RAW[0].tolist(), "text"], r"shape \(2,\) found"),
        (7, r"shape \(\) found"),
        ((RAW[:1] / 255).tolist(), "float64 found; integers"),
        ((RAW[:1].astype(int) + 200).tolist(), r"numbers from \d+ to \d+ found; integers"),
        ((RAW[:1] > 9).tolist(), "bool found"),
        ([[[["a"] * 3] * 32] * 32], "<U1 found"),
        ([[[[10**30] * 3] * 32] * 32], "object found"),
        (["not base64!"], "image 0: not base64"),
        (["ä"], "image 0: not base64"),
        ([text(photograph()), text(b"GIF89a")], "image 1: neither PNG nor JPEG"),
        ([text(photograph()[:99])], r"^image 0: not readable: "),
        (["A" * 20_000_001], "image 0: 20,000,001 characters found, 20,000,000 allowed"),
        (["A"] * 2001, "2,001 images found, 2,000 in a request allowed"),
    ],
)
def test_all_else_is_refused_with_what_was_found(given: object, reason: str) -> None:
    with pytest.raises(served_model.InvalidInput, match=reason) as caught:
        served_model.parse_input(objects(given))
    caught.value.message = f"Failed to predict data '{given}'"  # as MLflow does
    assert len(caught.value.serialize_as_json()) < 300
    assert caught.value.get_http_status_code() == 400


def test_the_cards_temperature_divides_the_logits(project: Path) -> None:
    model = mlflow.pyfunc.load_model(f"models:/{version(project)}").unwrap_python_model()
    model.card["temperature_tta"] = 1.0
    one = model.predict(None, RAW)
    model.card["temperature_tta"] = 2.0
    two = model.predict(None, RAW)
    for first, second in zip(one, two, strict=True):
        assert first["label"] == second["label"]
        logits = np.log(first["probabilities"]) / 2
        assert second["probabilities"] == pytest.approx(np.exp(logits) / np.exp(logits).sum())
        assert sum(second["probabilities"]) == pytest.approx(1)


def version(project: Path) -> str:
    connect(project)
    return f"cifar10-resnet/{json.loads((project / 'data/registry/decision.json').read_text())['version']}"


def test_the_example_stored_with_the_model_is_answered(project: Path) -> None:
    model = mlflow.pyfunc.load_model(f"models:/{version(project)}")
    assert model.input_example.shape == (1, 32, 32, 3)
    [answer] = model.predict(model.input_example)
    assert set(answer) == {"label", "class_name", "probabilities"}


def test_the_served_model_answers_as_predict_does_at_the_models_temperature(project: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.symlink_to(project / "data/model/model.safetensors")
    card = json.loads((project / "data/model/model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(card | {"temperature_tta": 3.0}))
    served, context = served_model.ServedModel(), cast("Any", SimpleNamespace(artifacts={"weights": str(weights)}))
    served.load_context(context)
    answers = served.predict(context, PIXELS.transpose(0, 2, 3, 1))
    chunks = [Chunk(["image"] * 10, PIXELS, [])]
    for answer, expected in zip(
        answers, predict_images(tmp_path, chunks, Counts(), strict=True, batch_size=10), strict=True
    ):
        assert (answer["label"], answer["class_name"]) == (expected.labels[0], expected.class_names[0])
        assert max(answer["probabilities"]) == pytest.approx(expected.confidences[0])
