import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from cifar_resnet.versioning import provenance

BEFORE = {
    "model": {"channels": [64, 256], "head_pool_kernel": 3},
    "train": {"epochs": 13, "cutout": 0, "sync_batch_norm": True, "weight_decay": 0.004},
    "predict": {"input": "data/prepared/test_images.npy"},
}
AFTER = {
    "model": {"channels": [8, 16, 32], "head_pool_kernel": 3},
    "train": {"epochs": 4, "cutout": 0, "sync_batch_norm": False, "weight_decay": 0.001},
    "predict": {"input": "my photos/it's.zip"},
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(BEFORE))
    (tmp_path / "code.py").write_text("before")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    return tmp_path


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    done = subprocess.run(["git", *identity, *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_recipes_overrides_make_the_params_again(root: Path) -> None:
    commit, text = git(root, "rev-parse", "HEAD"), yaml.safe_dump(AFTER)
    told = provenance.reproduce_command(root, commit, text).splitlines()
    assert told[:4] == ["To reproduce it:", "", "```", f"git checkout {commit}"]
    words = shlex.split(told[4])
    assert words[:3] == ["dvc", "exp", "run"]
    assert words[3::2] == ["-S"] * 5
    apply_overrides(root / "params.yaml", words[4::2])  # as dvc does
    assert yaml.safe_load((root / "params.yaml").read_text()) == AFTER
    title = provenance.run_name(root, text)
    assert title == "model.channels=[8,16,32], train.epochs=4, train.sync_batch_norm=false, train.weight_decay=0.001"


def test_without_changes_the_recipe_is_repro_and_other_files_are_named(root: Path) -> None:
    commit, text = git(root, "rev-parse", "HEAD"), (root / "params.yaml").read_text()
    assert provenance.reproduce_command(root, commit, text).endswith(f"git checkout {commit}\ndvc repro\n```")
    assert provenance.run_name(root, text) == ""
    (root / "code.py").write_text("after")
    assert provenance.reproduce_command(root, commit, text).endswith(
        "Besides, these files differ from that commit: code.py."
    )
    assert provenance.reproduce_command(root, "", text) == "No Git commit is known that would reproduce it."


def test_the_commit_that_brought_a_file_is_found(root: Path) -> None:
    first = git(root, "rev-parse", "HEAD")
    (root / "other.py").touch()
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "second")
    assert provenance.last_commit_of(root, "code.py") == provenance.last_commit_of(root, "code.py", "HEAD") == first
    (root / "code.py").write_text("after")
    assert provenance.last_commit_of(root, "code.py") == ""


def test_what_the_pipeline_writes_itself_makes_nothing_dirty(root: Path) -> None:
    for name in ("dvc.lock", "data/model/model.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("before")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "result")
    for name in ("dvc.lock", "data/model/model.json"):
        (root / name).write_text("after")
    clean = provenance.provenance_tags(root)
    assert clean["git_dirty"] == "false"
    assert clean["git_commit"] == git(root, "rev-parse", "HEAD")
    for name in ("params.yaml", "code.py"):
        before = (root / name).read_text()
        (root / name).write_text(before + "\n")
        assert provenance.provenance_tags(root)["git_dirty"] == "true"
        assert (provenance.provenance_tags(root)["params"] == clean["params"]) == (name != "params.yaml")
        (root / name).write_text(before)
