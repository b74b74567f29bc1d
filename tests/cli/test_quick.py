"""`make quick`: the experiment of this name is replaced, and the last lines name commands that exist."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, dvc, git

from cifar_resnet.cli import quick
from cifar_resnet.cli.main import make_parser
from cifar_resnet.files import write_json

METRICS = {"accuracy": 0.861, "accuracy_interval": [0.854, 0.868], "accuracy_tta": 0.87, "log_loss": 0.4,
           "images_per_second": 4000.0, "parameters": 489_066, "training_seconds": 55.4}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A Git repository with one commit."""
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "config", "user.name", "test")
    git(tmp_path, "config", "user.email", "test@localhost")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "start")
    return tmp_path


@pytest.mark.parametrize(
    ("decision", "registration"),
    [
        ({"model_name": "cifar10-resnet-quick", "version": 3}, "cifar10-resnet-quick version 3 in MLflow's registry"),
        ({"reason": "tracking.enabled is false"}, "tracking.enabled is false"),
    ],
)
def test_the_result_names_accuracy_and_registration_and_commands_that_exist(
    root: Path, capsys: pytest.CaptureFixture[str], decision: dict[str, object], registration: str
) -> None:
    dvc(root, "init", "--quiet")
    write_json(root / "data/evaluation/metrics.json", METRICS)
    write_json(root / "data/registry/decision.json", decision)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "result")
    git(root, "tag", "quick")
    quick.print_result(root)
    text = capsys.readouterr().out
    assert "test accuracy 86.10% (95 % interval 85.40% to 86.80%), 87.00% with test-time augmentation" in text
    assert f"489,066 parameters, trained in 55 s; {registration}\n" in text
    for command in re.findall(r"^  cifar-resnet (.*?)(?:   .*)?$", text, re.MULTILINE):
        make_parser().parse_args(shlex.split(command))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"^  make ([a-z-]+)", text, re.MULTILINE)) <= targets


OTHERS = ["refs/exps/aa/bb/other", "refs/exps/aa/bb/quick", "{head}/other", "{head}/quick-2"]
EARLIER = "{head}/quick"


def make_refs(root: Path, names: list[str]) -> list[str]:
    commit = git(root, "rev-parse", "HEAD").strip()
    references = [name.format(head=f"refs/exps/{commit[:2]}/{commit[2:]}") for name in names]
    for reference in references:
        git(root, "update-ref", reference, "HEAD")
    return sorted(references)


def refs_after_quick(root: Path, training: str) -> list[str]:
    """DVC's experiments after `make quick`, with a shell script in place of the training."""
    shutil.copy(ROOT / "Makefile", root)
    script = root / "training"
    script.write_text(f"#!/bin/sh\n{training}\n")
    script.chmod(0o755)
    command = ["make", "-o", ".venv/ready", f"MAKE={script}", "quick"]
    subprocess.run(command, cwd=root, capture_output=True, check=False)
    return git(root, "for-each-ref", "--format=%(refname)", "refs/exps").split()


@pytest.mark.parametrize("training", ["exit 1", "kill -INT $PPID; exit 1", "kill -TERM $PPID; exit 1"])
@pytest.mark.parametrize("earlier", [[EARLIER], []])
def test_a_training_that_fails_keeps_the_earlier_experiment(root: Path, training: str, earlier: list[str]) -> None:
    names = make_refs(root, [*earlier, *OTHERS])
    assert refs_after_quick(root, training) == names


def test_a_training_replaces_the_earlier_experiment_of_this_commit_and_no_others(root: Path) -> None:
    names = make_refs(root, [EARLIER, *OTHERS])
    earlier = next(name for name in names if name.endswith("/quick") and "/aa/" not in name)
    is_deleted = f"! git rev-parse --quiet --verify {earlier}"  # DVC would refuse the name
    assert refs_after_quick(root, f"{is_deleted} && git update-ref {earlier} HEAD^{{tree}}") == names
    assert git(root, "rev-parse", earlier) == git(root, "rev-parse", "HEAD^{tree}")
