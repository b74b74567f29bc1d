"""Tiny CIFAR-10 in the official binary format, tiny params, and a project where every stage has run on them."""

import csv
import importlib.util
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

import cifar_resnet.environment_variables  # noqa: F401
from cifar_resnet.data import cifar10
from cifar_resnet.data.dataset import Images
from cifar_resnet.inference import pretrained
from cifar_resnet.params.file import Params, parse_yaml

for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):  # under `make test`, a make in a test would print its folders
    os.environ.pop(name, None)

ROOT = Path(__file__).parents[1]
TINY = {
    "preprocess": {"validation_per_class": 2},
    "model": {
        "channels": [8, 16],
        "blocks": [1, 1],
        "kernels": [3, 3],
        "skip_kernels": [3, 3],
        "head_pool_kernel": 7,
        "whitening_epsilon": 0.0005,
    },
    "train": {
        "epochs": 3,
        "batch_size": 20,
        "filter_lr": 0.1,
        "bias_lr": 1.0,
        "head_lr": 0.05,
        "low_resolution_share": 0.4,
        "low_resolution": 24,
        "ema_decay": 0.5,
        "noise_probability": 0,
    },
    "evaluate": {"batch_size": 20},
    "register": {"min_accuracy": 0.5},
    "predict": {"batch_size": 20},
    "search": {
        "trials": 3,
        "minutes": 10,
        "epochs": 2,
        "low_resolution_share": 0.5,
        "train_per_class": 10,
        "validation_per_class": 5,
        "study": "architecture",
        "sampler": "random",
        "pruner": "median",
        "space": {
            "model.layers": [1, 2],
            "model.channels": [8, 12, 16],
            "model.blocks": [1, 2],
            "model.head_pool_kernel": [5, 7, 11, 15],
            "train.filter_lr": {"low": 0.05, "high": 0.2, "scale": "log"},
        },
    },
}
TINY_RECORDS = 40  # images in a file


def tiny_images(count: int, seed: int) -> Images:
    """Noise around the color of the class; `count` images of each class."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(10), count)
    colors = np.random.default_rng(0).integers(40, 215, (10, 3, 1, 1))
    pixels = np.clip(colors[labels] + random.normal(0, 25, (len(labels), 3, 32, 32)), 0, 255).astype(np.uint8)
    order = random.permutation(len(labels))
    return Images(pixels[order], labels[order])


def write_raw(folder: Path) -> None:
    """Write the six files of the official format."""
    folder.mkdir(parents=True)
    for seed, name in enumerate((*cifar10.TRAIN_FILES, cifar10.TEST_FILE)):
        images = tiny_images(TINY_RECORDS // 10, seed)
        content = cifar10.encode_records(images.pixels.reshape(-1, 3, 1024).transpose(0, 2, 1), images.labels.tolist())
        (folder / name).write_bytes(content)


def dump_yaml(values: Any) -> str:
    """YAML 1.2, one key per line, in the order of `values`."""
    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    yaml.dump(values, stream)
    return stream.getvalue()


def tiny_values(**sections: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The values of params.yaml, overridden by TINY and then by `sections`."""
    values = parse_yaml((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for overrides in (TINY, sections):
        for section, keys in overrides.items():
            values[section] |= keys
    return values  # type: ignore[no-any-return]


def tiny_params(**sections: dict[str, Any]) -> Params:
    return Params.model_validate(tiny_values(**sections))


def write_params(root: Path, **sections: dict[str, Any]) -> None:
    (root / "params.yaml").write_text(dump_yaml(tiny_values(**sections)), encoding="utf-8")


def load_script(path: str) -> ModuleType:
    """Import a script of this project, which is not part of the package, as a new module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stage(name: str) -> ModuleType:
    """Import stages/{name}.py as a new module."""
    return load_script(f"stages/{name}.py")


def tiny(patch: pytest.MonkeyPatch) -> None:
    """Let files be as small as the tiny data; remove settings of the caller's environment."""
    patch.setattr(cifar10, "RECORDS_PER_FILE", TINY_RECORDS)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_EXP_NAME"):
        patch.delenv(name, raising=False)


def dvc(root: Path, *arguments: str) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "dvc", *arguments]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout


def copy_project(root: Path, *, without: tuple[str, ...] = ()) -> None:
    """Copy this project's files into `root`, a new Git repository without dvc.lock and results.

    Args:
        without: folders to skip, with a slash at the end.
    """
    for name in git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        is_result = name == "dvc.lock" or (name.startswith("data/") and not name.startswith("data/own/"))
        if (ROOT / name).is_file() and not is_result and not name.startswith(without):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    git(root, "init", "--quiet")
    git(root, "config", "user.name", "test")
    git(root, "config", "user.email", "test@localhost")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(autouse=True)
def tiny_files_and_own_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes where the caller's environment points."""
    tiny(monkeypatch)


@pytest.fixture(scope="session")
def exported(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's model as an ONNX file."""
    from cifar_resnet.inference.onnx_export import export_model

    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_model(project / "data/model", path, precision="float32", root=project)
    return path


@pytest.fixture(params=["torch", "onnx"])
def model_path(request: pytest.FixtureRequest, project: Path) -> Path:
    """The project's model for each runtime: its folder, and an exported file."""
    path: Path = project / "data/model" if request.param == "torch" else request.getfixturevalue("exported")
    return path


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project where the stages from preprocess to predict have run on the tiny data."""
    root = tmp_path_factory.mktemp("project")
    write_raw(root / "data/raw")
    write_params(root)
    with pytest.MonkeyPatch.context() as patch:
        tiny(patch)
        for name in ("preprocess", "train", "evaluate", "register", "predict"):
            stage(name).main(root)
    return root


@pytest.fixture(scope="session")
def tiny_pretrained(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of pretrained weights, written from the tiny project's model."""
    folder = tmp_path_factory.mktemp("package") / "pretrained"
    load_script("benchmarks/pretrained.py").write_pretrained(project, "data/model", folder)
    return folder


@pytest.fixture
def shipped_pretrained(tiny_pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny pretrained weights, in place of those that come with the package."""
    monkeypatch.setattr(pretrained, "FOLDER", tiny_pretrained)
    return tiny_pretrained
