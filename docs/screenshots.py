"""Pictures of MLflow on this project, from a real browser: `python docs/screenshots.py` -> docs/images/*.png.

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

from mlflow import MlflowClient
from PIL import Image

from cifar_resnet.errors import UserError, run
from cifar_resnet.params.file import load_params
from cifar_resnet.registry.promotion import get_champion
from cifar_resnet.tracking.client import EXPERIMENT

IMAGES = "docs/images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1600, 900  # pixels
HOST = "mlflow.localhost"  # is 127.0.0.1 to a browser, but there MLflow does not open its panel for questions by itself
SETTLE_MILLISECONDS = 30_000  # of the page's own clock, which runs ahead while nothing is loading
COLOURS = 128
NOTICE = {"runs": 156}  # pixels down to where MLflow says that the view is a shared one; cut off
COLUMNS = [
    *(f"metrics.`{name}`" for name in ("test_accuracy", "test_accuracy_tta", "best_validation_accuracy", "train_loss")),
    *(f"params.`{name}`" for name in ("train.epochs", "train.seed", "model.channels")),
    "attributes.`Models`",
]
TRAINING = "workflowType=machine_learning"  # the menu of MLflow that fits


def main(root: Path) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    parser.add_argument("--browser", default=found, help=f"path of a Chromium; else the first of {', '.join(BROWSERS)}")
    browser = parser.parse_args().browser
    if browser is None:
        raise UserError(f"no browser found ({', '.join(BROWSERS)}); install one or name it with --browser")
    model = load_params(root / "params.yaml").register_.model_name
    with tempfile.TemporaryDirectory() as folder:
        views = pages(copy(root / "mlflow.db", Path(folder)), model)
        with interface(Path(folder)) as address:
            for name, page in views.items():
                path = root / IMAGES / f"{name}.png"
                take(browser, f"{address}/#/{page}", path)
                print(f"screenshots: {page.split('?')[0]} -> {IMAGES}/{name}.png, {path.stat().st_size / 1000:.0f} kB")


def copy(database: Path, folder: Path) -> MlflowClient:
    """A client of a copy of the database, so that the view of `pages` is not left behind in the project."""
    if not database.exists():
        raise UserError(f"{database}: not found; `dvc repro` makes it")
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(folder / "mlflow.db")) as target:
        source.backup(target)
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def pages(client: MlflowClient, model: str) -> dict[str, str]:
    """Name -> address within MLflow: the run table, the latest two runs side by side, the champion in the registry.

    Raises:
        UserError: if there are fewer than two finished runs, or no champion.
    """
    experiment = client.get_experiment_by_name(EXPERIMENT)
    number = experiment.experiment_id if experiment else ""
    finished = client.search_runs([number], "attributes.status = 'FINISHED'", order_by=["start_time DESC"])
    if len(finished) < 2:
        raise UserError(f"{len(finished)} finished runs found, two needed; `dvc exp run` makes one")
    present = get_champion(client, model) if client.search_registered_models(f"name = '{model}'") else None
    if present is None:
        raise UserError(f"{model} has no champion; `dvc repro register` makes one")
    client.set_experiment_tag(number, "mlflow.sharedViewState.pictures", json.dumps({"selectedColumns": COLUMNS}))
    latest = json.dumps([each.info.run_id for each in finished[:2]], separators=(",", ":"))
    return {
        "runs": f"experiments/{number}/runs?viewStateShareKey=pictures&{TRAINING}",
        "comparison": f"compare-runs?runs={quote(latest)}&experiments={quote(json.dumps([number]))}&{TRAINING}",
        "registry": f"models/{model}/versions/{present.version}?{TRAINING}",
    }


@contextmanager
def interface(folder: Path) -> Iterator[str]:
    """The address of MLflow's pages on the database in `folder`, while the block runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--allowed-hosts", f"{HOST}:{port},127.0.0.1:{port}", "--cors-allowed-origins", f"http://{HOST}:{port}"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            wait(f"http://127.0.0.1:{port}", server)
            yield f"http://{HOST}:{port}"
        finally:
            server.terminate()
            server.wait(60)


def wait(address: str, server: subprocess.Popen[bytes], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise UserError(f"mlflow did not answer at {address} within {seconds:.0f} s")


def take(browser: str, address: str, path: Path) -> None:
    """Save what the browser shows, in few colours, so that it is small enough for git.

    Raises:
        UserError: if the browser saves nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "page.png"
        options = [f"--window-size={WIDTH},{HEIGHT}", f"--virtual-time-budget={SETTLE_MILLISECONDS}"]
        options += ["--hide-scrollbars", f"--user-data-dir={folder}/profile", f"--screenshot={picture}"]
        options += ["--no-sandbox"] if os.getuid() == 0 else []  # Chromium's sandbox refuses to work for root
        command = [browser, "--headless", "--disable-gpu", *options, address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if not picture.exists():
            raise UserError(f"{browser} saved no picture: {done.stderr[-300:]}")
        shown = Image.open(picture).convert("RGB").crop((0, NOTICE.get(path.stem, 0), WIDTH, HEIGHT))
        shown.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    run(main)
