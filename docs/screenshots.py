"""Take screenshots of MLflow with the runs of this project: `python docs/screenshots.py` -> docs/images/*.png.

Needs Chromium (Debian and Ubuntu: apt-get install chromium) and a database with two finished runs and a champion.
"""

import argparse
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import cifar_resnet.environment_variables  # noqa: F401, isort: skip, before MLflow

from mlflow import MlflowClient
from PIL import Image

from cifar_resnet.errors import UserError, run
from cifar_resnet.params.file import load_params
from cifar_resnet.registry.promotion import get_champion
from cifar_resnet.tracking.client import EXPERIMENT

IMAGES = "docs/images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1600, 900  # pixels
HOST = "mlflow.localhost"  # 127.0.0.1 to a browser, but MLflow does not open its assistant panel at this address
PAGE_MILLISECONDS = 30_000  # of the browser's virtual clock, which runs fast while nothing is loading
COLOURS = 128
CROP_TOP = {"runs": 156}  # pixels; removes the banner about a shared view
COLUMNS = [
    *(f"metrics.`{name}`" for name in ("test_accuracy", "test_accuracy_tta", "best_validation_accuracy", "train_loss")),
    *(f"params.`{name}`" for name in ("train.epochs", "train.seed", "model.channels")),
    "attributes.`Models`",
]
WORKFLOW = "workflowType=machine_learning"  # the menu for training, not for generative AI


def main(root: Path) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = next(filter(None, map(shutil.which, BROWSERS)), None)
    parser.add_argument(
        "--browser", default=default, help=f"path of Chromium (default: first of {', '.join(BROWSERS)})"
    )
    browser = parser.parse_args().browser
    if browser is None:
        raise UserError(f"no browser found ({', '.join(BROWSERS)}); install one, or set its path with --browser")
    model = load_params(root / "params.yaml").register_.model_name
    with tempfile.TemporaryDirectory() as folder:
        pages = page_addresses(copy_database(root / "mlflow.db", Path(folder)), model)
        with mlflow_server(Path(folder)) as address:
            for name, page in pages.items():
                path = root / IMAGES / f"{name}.png"
                take_screenshot(browser, f"{address}/#/{page}", path)
                print(f"screenshots: {page.split('?')[0]} -> {IMAGES}/{name}.png, {path.stat().st_size / 1000:.0f} kB")


def copy_database(database: Path, folder: Path) -> MlflowClient:
    """A client of a copy of the database; `page_addresses` adds a shared view, which the project does not need."""
    if not database.exists():
        raise UserError(f"{database} not found; run `dvc repro`")
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(folder / "mlflow.db")) as target:
        source.backup(target)
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def page_addresses(client: MlflowClient, model: str) -> dict[str, str]:
    """Name -> address in MLflow of three pages: table of runs, comparison of the latest two runs, and the champion.

    Raises:
        UserError: if there are fewer than two finished runs, or no champion.
    """
    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiment_id = experiment.experiment_id if experiment else ""
    finished = client.search_runs([experiment_id], "attributes.status = 'FINISHED'", order_by=["start_time DESC"])
    if len(finished) < 2:
        raise UserError(f"{len(finished)} finished runs found, at least two required; run `dvc exp run`")
    champion = get_champion(client, model) if client.search_registered_models(f"name = '{model}'") else None
    if champion is None:
        raise UserError(f"{model} has no champion; run `dvc repro register`")
    client.set_experiment_tag(
        experiment_id, "mlflow.sharedViewState.screenshots", json.dumps({"selectedColumns": COLUMNS})
    )
    latest = json.dumps([latest_run.info.run_id for latest_run in finished[:2]], separators=(",", ":"))
    return {
        "runs": f"experiments/{experiment_id}/runs?viewStateShareKey=screenshots&{WORKFLOW}",
        "comparison": f"compare-runs?runs={quote(latest)}&experiments={quote(json.dumps([experiment_id]))}&{WORKFLOW}",
        "registry": f"models/{model}/versions/{champion.version}?{WORKFLOW}",
    }


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Run an MLflow server on the database in `folder` while the block runs; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--allowed-hosts", f"{HOST}:{port},127.0.0.1:{port}", "--cors-allowed-origins", f"http://{HOST}:{port}"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}", server)
            yield f"http://{HOST}:{port}"
        finally:
            server.terminate()
            server.wait(60)


def wait_until_healthy(address: str, server: subprocess.Popen[bytes], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise UserError(f"mlflow is not reachable at {address} after {seconds:.0f} s; try again")


def take_screenshot(browser: str, address: str, path: Path) -> None:
    """Save a page of MLflow as PNG with few colours, small enough for git.

    Raises:
        UserError: if the browser saves nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        screenshot = Path(folder) / "page.png"
        options = [f"--window-size={WIDTH},{HEIGHT}", f"--virtual-time-budget={PAGE_MILLISECONDS}"]
        options += ["--hide-scrollbars", f"--user-data-dir={folder}/profile", f"--screenshot={screenshot}"]
        options += ["--no-sandbox"] if os.getuid() == 0 else []  # Chromium's sandbox does not work for root
        command = [browser, "--headless", "--disable-gpu", *options, address]
        process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if not screenshot.exists():
            raise UserError(f"{browser} saved no screenshot: {process.stderr[-300:]}")
        image = Image.open(screenshot).convert("RGB").crop((0, CROP_TOP.get(path.stem, 0), WIDTH, HEIGHT))
        image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    run(main)
