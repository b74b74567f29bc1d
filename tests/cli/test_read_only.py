"""Commands that only read need no permission to write to the project."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_images, tiny_params

from cifar_resnet.search.study import Study

# Root may write everywhere, unless it drops this capability.
AS_USER = ["setpriv", "--bounding-set", "-dac_override"] if os.getuid() == 0 else []


def finish_a_trial(root: Path) -> None:
    study = Study(root, tiny_params(), ("data", 10))
    trial = study.ask(1)
    assert trial is not None
    study.report(trial, 1, 0.5)
    study.tell(trial, "finished", seconds=1.0)


@pytest.fixture(scope="module")
def read_only_project(project: Path) -> Iterator[Path]:
    """A copy of the project with a search, without permissions to write."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "project")
        shutil.copytree(project, root, ignore=shutil.ignore_patterns("raw", "prepared"))
        np.save(root / "images.npy", tiny_images(1, seed=3).pixels)
        finish_a_trial(root)
        (root / "search.db.lock").unlink(missing_ok=True)
        for path in (Path(folder), root, *root.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield root
        for path in (Path(folder), *(path for path in root.rglob("*") if path.is_dir()), root):
            path.chmod(0o755)


def run(root: Path, *arguments: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run a command without permission to write, and check that it created no file."""
    before = sorted(root.rglob("*"))
    assert subprocess.run([*AS_USER, "touch", root / "new"], capture_output=True, check=False).returncode != 0
    command = [*AS_USER, sys.executable, "-m", "cifar_resnet", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert sorted(root.rglob("*")) == before
    return done


@pytest.mark.parametrize("arguments", [[], ["--model", "1"], ["--model", "models:/cifar10-resnet@champion"]])
def test_the_champion_predicts(read_only_project: Path, arguments: list[str]) -> None:
    done = run(read_only_project, "predict", "images.npy", *arguments)
    assert done.stderr.startswith("predict: 10 images, model: ")
    assert "data/model" not in done.stderr


def test_the_registered_models_and_a_change_without_making_it_are_shown(read_only_project: Path) -> None:
    assert "champion" in run(read_only_project, "registry", "list").stdout
    assert "nothing to do" in run(read_only_project, "registry", "promote", "1", "--dry-run").stdout


def test_the_best_trials_are_shown(read_only_project: Path) -> None:
    assert "50.00%" in run(read_only_project, "search", "best").stdout


def test_two_networks_are_compared_without_a_figure(read_only_project: Path) -> None:
    done = run(read_only_project, "compare", "pretrained", "pretrained")
    assert "(McNemar's exact test)" in done.stdout
    assert done.stderr == (
        "compare: data/scratch/comparison.png cannot be written (Permission denied), so the figure is skipped; "
        "--output names another file\n"
    )


@pytest.mark.parametrize(
    ("arguments", "output", "file"),
    [
        (["predict", "images.npy"], "a.csv", ""),
        (["predict", "images.npy"], "new/a.csv", ""),
        (["export"], "new/deep/a.onnx", ""),
        (["search", "best"], "new/results", "/trials.csv"),
        (["compare", "pretrained", "pretrained"], "new/a.png", ""),
    ],
)
def test_an_output_that_cannot_be_written_is_named_as_the_user_wrote_it(
    read_only_project: Path, arguments: list[str], output: str, file: str
) -> None:
    done = run(read_only_project, *arguments, "--output", output, code=1)
    assert done.stderr == f"cifar-resnet: {output}{file}: cannot be used (Permission denied)\n"
