"""The page of `cifar-resnet demo` in a real browser; run by `make test-services`."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from servers import free_port, run_server

from cifar_resnet.data.dataset import Pixels
from cifar_resnet.inference import image_reader
from cifar_resnet.inference.model import Model
from cifar_resnet.registry.load import find_model

pytestmark = pytest.mark.services
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MILLISECONDS = 120_000  # for an answer, on a busy machine
# Runs the command and appends the address of every connection and name lookup of its process to a file.
RECORDED_COMMAND = """
import sys

def record(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        address = arguments[1] if event == "socket.connect" else arguments
        print(address[0] if isinstance(address, tuple) else address, file=log, flush=True)

log = open(sys.argv.pop(1), "a")
sys.addaudithook(record)
from cifar_resnet.cli.main import run_cli
run_cli()
"""


@pytest.fixture(scope="module")
def root(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with a champion, and in data/model the same network with another temperature."""
    root = tmp_path_factory.mktemp("demo") / "project"
    shutil.copytree(project, root, ignore=shutil.ignore_patterns("scratch", "raw"))
    config = json.loads((root / "data/model/model.json").read_text())
    (root / "data/model/model.json").write_text(json.dumps(config | {"temperature_tta": 4 * config["temperature_tta"]}))
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[tuple[str, Path]]:
    """The address of the page, and the file with the addresses to which its process connects."""
    connections, port = root.parent / "connections", free_port()
    command = [sys.executable, "-c", RECORDED_COMMAND, connections, "demo", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with run_server(command, root.parent / "log", url, cwd=root, env=environment):
        yield url, connections


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright  # only in the extra `services`

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert path is not None, f"no browser found ({', '.join(BROWSERS)}); `make test-services` installs one"
    options = ["--no-sandbox"] if os.getuid() == 0 else []  # Chromium's sandbox does not work for root
    options += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # a camera without permission
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=options)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, server: tuple[str, Path]) -> Iterator[Any]:
    """The opened page. Every request of the browser goes to this machine, and no message of an error appears."""
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.set_default_timeout(MILLISECONDS)
    hosts: set[str | None] = set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    page.goto(server[0])
    page.get_by_text("the answer appears here").wait_for()
    yield page
    assert hosts - {None, ""} == {"127.0.0.1"}  # None: data: and blob: addresses
    page.close()


def upload(page: Any, path: Path) -> None:
    page.locator("#photo input[type=file]").set_input_files(path)


def answered_probabilities(page: Any) -> dict[str, int]:
    """Percentages of the five most likely classes, as soon as the page shows them."""
    page.locator("#probabilities").get_by_text("%").nth(4).wait_for()
    text = page.locator("#probabilities").inner_text()
    return {name: int(percent) for name, percent in re.findall(r"(\w+)\n(\d+)%", text)}


def shown_image(page: Any, name: str) -> np.ndarray:  # type: ignore[type-arg]
    """Pixels (32, 32, 3) of an output image, which the page enlarges by 10."""
    page.locator(f"#{name} img").wait_for()
    with urlopen(page.locator(f"#{name} img").get_attribute("src"), timeout=30) as response:
        pixels = np.asarray(Image.open(io.BytesIO(response.read())).convert("RGB"))
    assert pixels.shape == (320, 320, 3)
    assert (pixels == pixels[::10, ::10].repeat(10, axis=0).repeat(10, axis=1)).all()  # sharp pixels
    return pixels[::10, ::10]


def photo(path: Path, seed: int = 0, side: int = 300) -> Path:
    """A JPEG of a few large blobs of color."""
    blobs = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(blobs).resize((3 * side // 2, side), Image.Resampling.BICUBIC).save(path, "JPEG")
    return path


def predicted_percentages(root: Path, name: str, pixels: Pixels) -> dict[str, int]:
    """The rounded probabilities of the five most likely classes, as `cifar-resnet predict` has them."""
    with find_model(root, name) as found:
        model = Model(found.folder, torch.device("cpu"))
    (row,) = model.predict(pixels[None]).probabilities
    return {model.classes[label]: round(100 * row[label]) for label in np.argsort(-row)[:5]}


def test_a_jpeg_gets_the_probabilities_of_predict_and_shows_what_the_network_sees(
    page: Any, root: Path, tmp_path: Path
) -> None:
    path = photo(tmp_path / "photo.jpg")
    upload(page, path)
    probabilities = answered_probabilities(page)
    pixels = image_reader.read_picture("photo.jpg", lambda: path.open("rb"))
    assert probabilities == pytest.approx(predicted_percentages(root, "champion", pixels), abs=1)
    assert (shown_image(page, "seen") == pixels.transpose(1, 2, 0)).all()
    heat = shown_image(page, "heat").astype(int)
    assert (heat[..., 0] - heat[..., 1]).max() > 50


def test_an_example_gets_an_answer(page: Any) -> None:
    page.locator(".gallery-item, .gallery button").first.click()
    assert len(answered_probabilities(page)) == 5


def test_a_photograph_of_the_camera_gets_an_answer(page: Any) -> None:
    page.get_by_label("Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#photo video')?.videoWidth > 0")
    page.get_by_label("capture photo").click()
    assert len(answered_probabilities(page)) == 5


def test_a_broken_file_gets_a_sentence_and_the_next_picture_an_answer(page: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photo(tmp_path / "photo.jpg").read_bytes()[:2000])
    upload(page, broken)
    page.get_by_text("broken.jpg: not readable: ").wait_for()
    assert page.locator("#probabilities").get_by_text("%").count() == 0
    assert page.get_by_test_id("toast-body").count() == 0
    page.get_by_label("Remove Image").click()
    upload(page, tmp_path / "photo.jpg")
    answered_probabilities(page)


def test_a_png_of_30_megapixels_gets_an_answer(page: Any, tmp_path: Path) -> None:
    rows, columns = np.mgrid[:5000, :6000]
    Image.fromarray(((rows // 24 + columns // 30) % 256).astype(np.uint8)).save(tmp_path / "large.png")
    upload(page, tmp_path / "large.png")
    assert len(answered_probabilities(page)) == 5


def test_a_file_above_the_limit_gets_a_sentence(page: Any, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(bytes(16_000_000))
    upload(page, tmp_path / "large.png")
    page.get_by_text('exceed the maximum allowed size of 15.0 Mb: "large.png"').first.wait_for()


def test_switching_the_model_changes_the_answer(page: Any, root: Path, tmp_path: Path) -> None:
    path = photo(tmp_path / "photo.jpg", seed=1)
    pixels = image_reader.read_picture("photo.jpg", lambda: path.open("rb"))
    champion, other = (predicted_percentages(root, name, pixels) for name in ("champion", "data/model"))
    assert abs(champion[next(iter(champion))] - other[next(iter(other))]) > 5
    upload(page, path)
    assert answered_probabilities(page) == pytest.approx(champion, abs=1)
    page.get_by_text("data/model (test accuracy").click()
    deadline = time.monotonic() + MILLISECONDS / 1000
    while answered_probabilities(page) != pytest.approx(other, abs=1):
        assert time.monotonic() < deadline, (answered_probabilities(page), other)
        page.wait_for_timeout(500)


def test_the_server_connects_to_this_machine_only(server: tuple[str, Path], page: Any) -> None:
    addresses = set(server[1].read_text().split("\n")) - {""}
    assert addresses <= {"127.0.0.1", "localhost", "::1"}, addresses


def test_a_port_in_use_is_an_error_of_one_line(server: tuple[str, Path], root: Path) -> None:
    port = str(urlsplit(server[0]).port)
    command = [sys.executable, "-m", "cifar_resnet", "demo", "--port", port]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("cifar-resnet: ")
    assert port in result.stderr.splitlines()[-1]
