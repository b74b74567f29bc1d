"""The registered model behind `mlflow models serve`; run by `make test-services`."""

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import rows
from PIL import Image
from servers import free_port, post, post_inputs, run_server, venv_program

import cifar_resnet
from cifar_resnet.inference import image_reader

pytestmark = pytest.mark.services
MODEL_URI = "models:/cifar10-resnet@champion"


def png(pixels: np.ndarray, size: tuple[int, int]) -> bytes:  # type: ignore[type-arg]
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def model_url(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of `mlflow models serve` for the champion of the tiny project, with pickle forbidden."""
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    command = [venv_program("mlflow"), "models", "serve", "--model-uri", MODEL_URI]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with run_server(command, folder / "log", f"{url}/ping", cwd=folder, env=environment):
        yield url


def test_raw_images_over_http_get_the_predictions_of_the_champion(
    project: Path, model_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.load(project / "data/prepared/test_images.npy", allow_pickle=False)
    status, text = post_inputs(model_url, pixels.transpose(0, 2, 3, 1).tolist())
    assert status == 200, text
    monkeypatch.chdir(project)
    champion = cifar_resnet.load("champion").predict(pixels)
    records, expected = json.loads(text)["predictions"], rows(project / "data/predictions/predictions.csv")
    assert len(records) == len(expected) == 40
    for record, row, probabilities in zip(records, expected, champion.probabilities, strict=True):
        assert (str(record["label"]), record["class_name"]) == (row["label"], row["class_name"])
        assert record["probabilities"] == pytest.approx(probabilities.tolist(), abs=1e-3)


def test_an_image_file_over_http_gets_the_prediction_of_its_scaled_pixels(
    project: Path, model_url: str, tmp_path: Path
) -> None:
    pixels = np.load(project / "data/prepared/test_images.npy", allow_pickle=False)[3].transpose(1, 2, 0)
    (tmp_path / "photo.png").write_bytes(png(pixels, (640, 480)))
    with (tmp_path / "photo.png").open("rb") as stream:
        scaled = image_reader.read_image(stream).transpose(1, 2, 0)
    encoded = base64.b64encode((tmp_path / "photo.png").read_bytes()).decode()
    (status, text), (_, expected) = post_inputs(model_url, [encoded]), post_inputs(model_url, [scaled.tolist()])
    assert status == 200, text
    assert json.loads(text) == json.loads(expected)


def test_invalid_requests_are_rejected_with_the_reason_and_the_server_stays_up(model_url: str) -> None:
    valid = np.zeros((1, 32, 32, 3), dtype=int)
    truncated = base64.b64encode(png(np.zeros((32, 32, 3), np.uint8), (64, 64))[:60]).decode()
    for value, reason in (
        ([], "an input of type <class 'list'> was found"),
        (7, "shape () found"),
        ("text", "shape () found"),
        ({"image": 1}, "an input of type <class 'dict'> was found"),
        ([{"image": 1}], "an input of type <class 'list'> was found"),
        (None, "an input of type <class 'NoneType'> was found"),
        (np.zeros((1, 3, 32, 32)).tolist(), "shape (1, 3, 32, 32) found"),
        ((valid + 0.5).tolist(), "float64 found"),
        ((valid - 1).tolist(), "values from -1 to -1 found"),
        ([truncated], "image 0: not readable: "),
        (["%%%"], "image 0: not base64"),
        (["A" * 20_000_001], "20,000,001 characters found; at most 20,000,000 are allowed"),
        (["A"] * 2001, "2,001 images found; at most 2,000 are allowed per request"),
    ):
        status, text = post_inputs(model_url, value)
        assert 400 <= status < 500, f"{value!r:.60}: {status} {text[:500]}"
        assert reason in json.loads(text)["message"], text[:500]
    for body, content_type, status in (
        (b"", "application/json", 400),
        (b'{"inputs": 1, "instances": 2}', "application/json", 400),
        (b'{"dataframe_records": [{"image": "x"}]}', "application/json", 400),
        (b'{"dataframe_split": {"data": [[1]]}}', "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"{", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b'{"other": 1}', "application/json", 400),
        (b"a,b\n1,2\n", "text/csv", 400),
        (b"x", "image/png", 415),
    ):
        assert post(model_url, body, content_type)[0] == status, body
    assert post_inputs(model_url, valid.tolist())[0] == 200


PRINT_IMPORTED_FILES = """
import sys
import mlflow

mlflow.pyfunc.load_model(sys.argv[1])
print(*(module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "cifar_resnet"))
"""


def test_the_registered_model_uses_its_own_code(project: Path, tmp_path: Path) -> None:
    """Even if this package is installed: an older version must run the code that was registered with it."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}"}
    command = [sys.executable, "-c", PRINT_IMPORTED_FILES, MODEL_URI]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    files = result.stdout.split()
    assert "image_reader.py" in {Path(file).name for file in files}
    assert all(file.startswith(str(project / "mlartifacts")) for file in files), files
