"""Take screenshots of MLflow with the runs of this project: `python docs/screenshots.py` -> docs/images/*.png.

Needs Chromium (Debian and Ubuntu: apt-get install chromium) and a database with two finished runs and a champion.
The pages are those whose addresses `make ui` prints, and the comparison of the two best runs.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote

import cifar_resnet.environment_variables  # noqa: F401, isort: skip, before MLflow

from mlflow import MlflowClient
from PIL import Image

from cifar_resnet.errors import UserError, run
from cifar_resnet.params.file import load_params
from cifar_resnet.tracking.client import connect, experiment_id
from cifar_resnet.tracking.location import project_home, tracking_uri
from cifar_resnet.tracking.server import HOST, TRAINING_MENU, mlflow_server, page_addresses

IMAGES = "docs/images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1600, 900  # pixels
PAGE_MILLISECONDS = 30_000  # of the browser's virtual clock, which runs fast while nothing is loading
COLOURS = 128


def main(root: Path) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = next(filter(None, map(shutil.which, BROWSERS)), None)
    parser.add_argument(
        "--browser", default=default, help=f"path of Chromium (default: first of {', '.join(BROWSERS)})"
    )
    browser = parser.parse_args().browser
    if browser is None:
        raise UserError(f"no browser found ({', '.join(BROWSERS)}); install one, or set its path with --browser")
    pages = addresses_by_image(connect(root), load_params(root / "params.yaml").register_.model_name)
    with mlflow_server(tracking_uri(root), project_home(root)) as (port, _):
        for name, page in pages.items():
            path = root / IMAGES / f"{name}.png"
            take_screenshot(browser, f"http://{HOST}:{port}/{page}", path)
            print(f"screenshots: {page.split('?')[0]} -> {IMAGES}/{name}.png, {path.stat().st_size / 1000:.0f} kB")


def addresses_by_image(client: MlflowClient, model: str) -> dict[str, str]:
    """The table of runs, the comparison of the two best runs, and the champion.

    Raises:
        UserError: if there are fewer than two finished runs, or no champion.
    """
    pages, experiment = page_addresses(client, model), experiment_id(client)
    best = client.search_runs([experiment], "attributes.status = 'FINISHED'", order_by=["metrics.test_accuracy DESC"])
    if len(best) < 2:
        raise UserError(f"{len(best)} finished runs found, at least two required; run `dvc exp run`")
    if "champion" not in pages:
        raise UserError(f"{model} has no champion; run `dvc repro register`")
    runs = quote(json.dumps([finished.info.run_id for finished in best[:2]], separators=(",", ":")))
    comparison = f"#/compare-runs?runs={runs}&experiments={quote(json.dumps([experiment]))}&{TRAINING_MENU}"
    return {"runs": pages["runs"], "comparison": comparison, "registry": pages["champion"]}


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
        image = Image.open(screenshot).convert("RGB")
        image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    run(main)
