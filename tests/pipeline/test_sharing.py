"""The commands of docs/scaling.md that share results: a folder as DVC's remote, a bare repository as Git's."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, copy_project, dump_yaml, dvc, git, rows, tiny_values

from cifar_resnet.params.file import parse_yaml

pytestmark = pytest.mark.services
STAGES = ("train", "evaluate")
ARRAYS = [f"{part}_{kind}.npy" for part in ("train", "validation", "test") for kind in ("images", "labels")]


def sharing_commands(remote: Path) -> tuple[str, str]:
    """The commands for the project and for the clone."""
    section = (ROOT / "docs/scaling.md").read_text(encoding="utf-8").partition("\n## Sharing\n")[2]
    match = re.search(r"```\n# here\n(.*?)\n\n# in the clone\n(.*?)\n```", section, re.DOTALL)
    assert match is not None
    assert "/mnt/store" in match[1]
    return match[1].replace("/mnt/store", str(remote)), match[2]


def run_commands(root: Path, commands: str) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    shell = ["bash", "-e", "-c", commands]
    result = subprocess.run(shell, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def create_trained_project(root: Path, prepared: Path, origin: Path) -> None:
    """A project with an upstream, a committed result and an experiment; its only stages are `STAGES`."""
    copy_project(root, without=("tests/",))
    pipeline = parse_yaml((root / "dvc.yaml").read_text(encoding="utf-8"))
    pipeline["stages"] = {name: pipeline["stages"][name] for name in STAGES}
    (root / "dvc.yaml").write_text(dump_yaml(pipeline), encoding="utf-8")
    (root / "params.yaml").write_text(dump_yaml(tiny_values(evaluate={"corruptions": False})), encoding="utf-8")
    shutil.copytree(prepared, root / "data/prepared")
    dvc(root, "add", "--quiet", *(f"data/prepared/{name}" for name in ARRAYS))
    dvc(root, "repro", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "result")
    dvc(root, "exp", "run", "--quiet", "--temp", "--name", "my-experiment", "-S", "train.epochs=2")
    git(root, "init", "--quiet", "--bare", str(origin))
    git(root, "remote", "add", "origin", str(origin))
    git(root, "push", "--quiet", "--set-upstream", "origin", "HEAD")


def create_environment(root: Path) -> None:
    """A .venv that `make setup` finds complete; its commands are those of the running environment."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / ".venv"], check=True)
    content = (root / "pyproject.toml").read_bytes() + (root / "constraints.txt").read_bytes()
    (root / ".venv/ready").write_bytes(content)


def test_a_clone_gets_data_model_metrics_and_runs(project: Path, tmp_path: Path) -> None:
    root, origin, clone = tmp_path / "project", tmp_path / "origin.git", tmp_path / "clone"
    here, in_clone = sharing_commands(tmp_path / "store")
    create_trained_project(root, project / "data/prepared", origin)
    run_commands(root, here)
    git(tmp_path, "clone", "--quiet", str(origin), str(clone))
    create_environment(clone)
    output = run_commands(clone, in_clone)
    assert "installing" not in output
    assert "Data and pipelines are up to date." in dvc(clone, "status")
    for name in ("data/model/model.safetensors", "data/evaluation/metrics.json", "data/prepared/train_images.npy"):
        assert (clone / name).read_bytes() == (root / name).read_bytes()
    assert len(rows(clone / "data/model/history.csv")) == 3
    assert "my-experiment" in dvc(clone, "exp", "list", "--all-commits")
    runs = re.findall(r"^(.+): run \w+: added, (\d) epochs$", output, re.MULTILINE)
    assert runs == [("workspace", "3"), ("my-experiment", "2")]
