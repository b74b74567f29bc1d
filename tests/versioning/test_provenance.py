import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, dump_yaml, tiny_params
from dvc.utils.hydra import apply_overrides

from cifar_resnet.environment_variables import GIT_REPOSITORY_VARIABLES
from cifar_resnet.params.file import parse_yaml
from cifar_resnet.versioning import provenance

BEFORE = {
    "model": {"channels": [64, 256], "head_pool_kernel": 3},
    "train": {"epochs": 13, "cutout": 0, "sync_batch_norm": True, "weight_decay": 0.004},
    "predict": {"input": "data/prepared/test_images.npy"},
}
FIRST_TEST = "test_last_commit_of_returns_the_last_commit_that_changed_a_file"
AFTER = {
    "model": {"channels": [8, 16, 32], "head_pool_kernel": 3},
    "train": {"epochs": 4, "cutout": 0, "sync_batch_norm": False, "weight_decay": 0.001},
    "predict": {"input": "my photos/it's.zip"},
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    (tmp_path / "params.yaml").write_text(dump_yaml(BEFORE))
    (tmp_path / "code.py").write_text("before")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    return tmp_path


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    result = subprocess.run(["git", *identity, *arguments], cwd=root, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_the_overrides_of_the_command_reproduce_the_params(root: Path) -> None:
    commit, text = git(root, "rev-parse", "HEAD"), dump_yaml(AFTER)
    lines = provenance.reproduce_command(root, {"git_commit": commit}, text).splitlines()
    assert lines[:4] == ["To reproduce it:", "", "```", f"git checkout {commit}"]
    arguments = shlex.split(lines[4])
    assert arguments[:3] == ["dvc", "exp", "run"]
    assert arguments[3::2] == ["-S"] * 5
    apply_overrides(root / "params.yaml", arguments[4::2])  # what `dvc exp run -S` calls
    assert parse_yaml((root / "params.yaml").read_text()) == AFTER
    name = provenance.run_name(root, text)
    assert name == "channels=[8,16,32], epochs=4, sync_batch_norm=false, weight_decay=0.001"


def test_the_name_of_a_run_starts_with_its_experiment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "params.yaml").write_text(dump_yaml(AFTER))
    changes = "channels=[8,16,32], epochs=4, sync_batch_norm=false, weight_decay=0.001"
    assert provenance.describe_training(root, tiny_params()).name == changes
    monkeypatch.setenv("DVC_EXP_NAME", "puffy-crow")
    assert provenance.describe_training(root, tiny_params()).name == f"puffy-crow: {changes}"


def test_names_without_sections_are_unambiguous() -> None:
    params = tiny_params()
    assert not params.model.model_dump().keys() & params.train.model_dump().keys()


def test_of_many_changed_files_only_the_first_are_named(root: Path) -> None:
    commit, text = git(root, "rev-parse", "HEAD"), (root / "params.yaml").read_text()
    for number in range(1200):
        (root / f"photo-{number:04}.png").touch()
    git(root, "add", "--all")
    command = provenance.reproduce_command(root, {"git_commit": commit}, text)
    assert command.endswith("photo-0018.png, photo-0019.png and 1,180 more.")
    assert command.count("photo-") == provenance.MAX_FILES


def test_without_overrides_the_command_is_repro_and_changed_files_are_named(root: Path) -> None:
    commit, text = git(root, "rev-parse", "HEAD"), (root / "params.yaml").read_text()
    tags = {"git_commit": commit}
    assert provenance.reproduce_command(root, tags, text).endswith(f"git checkout {commit}\ndvc repro\n```")
    assert provenance.run_name(root, text) == ""
    (root / "code.py").write_text("after")
    assert provenance.reproduce_command(root, tags, text).endswith(
        "Besides, these files differ from that commit: code.py."
    )
    assert provenance.reproduce_command(root, {}, text) == "The Git commit is unknown (none is recorded)."


def test_last_commit_of_returns_the_last_commit_that_changed_a_file(root: Path) -> None:
    first = git(root, "rev-parse", "HEAD")
    (root / "other.py").touch()
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "second")
    assert provenance.last_commit_of(root, "code.py") == provenance.last_commit_of(root, "code.py", "HEAD") == first
    (root / "code.py").write_text("after")
    assert provenance.last_commit_of(root, "code.py") == ""


def test_changed_params_and_code_are_dirty_but_pipeline_outputs_are_not(root: Path) -> None:
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


@pytest.mark.parametrize(
    ("key", "value"),
    [("input", value) for value in ("2024", "true", "NULL", "1e-05", "Käse & Brot", 'a"b', "~/x", "", "-")]
    + [("added", value) for value in (1, [1, "no", 0.00001], None)],
)
def test_every_value_survives_the_command(root: Path, key: str, value: Any) -> None:
    after = {**BEFORE, "predict": {key: value}}  # without "input", the key is removed
    overrides = provenance.params_overrides(root, "HEAD", dump_yaml(after))
    apply_overrides(root / "params.yaml", overrides)
    assert parse_yaml((root / "params.yaml").read_text()) == after


def test_the_space_of_the_search_is_not_part_of_a_training(root: Path) -> None:
    text = dump_yaml(BEFORE | {"search": {"space": {"model.layers": [1, 2]}}})
    assert provenance.params_overrides(root, "HEAD", text) == []


def describe(root: Path, monkeypatch: pytest.MonkeyPatch, *, path: str = "") -> provenance.TrainingSource:
    """The description of a training whose params and code differ from the commit.

    Args:
        path: PATH, if not the present one.
    """
    (root / "params.yaml").write_text(dump_yaml(AFTER))
    (root / "code.py").write_text("after")
    with monkeypatch.context() as patch:
        if path:
            patch.setenv("PATH", path)
        return provenance.describe_training(root, tiny_params())


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("other owner", "fatal: detected dubious ownership in repository at "),
        ("no git", "git: No such file or directory"),
        ("no repository", "fatal: not a git repository"),
        ("no commit", "fatal: invalid object name 'HEAD'."),
        ("inside another repository", "fatal: path 'project/params.yaml' exists on disk, but not in 'HEAD'"),
    ],
)
def test_what_git_does_not_report_is_not_recorded(
    root: Path, monkeypatch: pytest.MonkeyPatch, case: str, reason: str
) -> None:
    project = root
    if case == "other owner":
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    elif case in {"no repository", "no commit"}:
        shutil.rmtree(root / ".git")
        if case == "no commit":
            git(root, "init", "--quiet")
    elif case == "inside another repository":
        project = root / "project"
        project.mkdir()
    source = describe(project, monkeypatch, path=str(root) if case == "no git" else "")
    assert set(source.tags) == {"params", "git_error"}
    assert source.tags["git_error"].startswith(reason)
    assert "\n" not in source.tags["git_error"]
    assert source.reproduce == f"The Git commit is unknown ({source.tags['git_error']})."
    assert source.name.startswith("seed 0")  # a summary of the params, because differences are unknown
    assert provenance.last_commit_of(project, "code.py") == "" or case == "inside another repository"


def test_a_commit_that_the_clone_does_not_have_gives_no_command(root: Path, tmp_path_factory: Any) -> None:
    commit = git(root, "rev-parse", "HEAD")
    (root / "params.yaml").write_text(dump_yaml(AFTER))
    git(root, "commit", "--quiet", "--all", "--message", "second")
    clone = tmp_path_factory.mktemp("clones") / "shallow"
    git(root, "clone", "--quiet", "--depth=1", root.as_uri(), str(clone))
    git(root, "commit", "--quiet", "--amend", "--message", "squashed")
    for folder, missing in ((clone, commit), (root, "0" * 40)):
        for revision in ("", "HEAD"):
            text = provenance.reproduce_command(folder, {"git_commit": missing}, dump_yaml(AFTER), revision)
            assert f"commit {missing}, which is not in this clone. Its params and files are unknown." in text
            assert "dvc" not in text
            assert "checkout" not in text
        assert provenance.run_name(folder, dump_yaml(AFTER), missing) == ""
    git(clone, "fetch", "--quiet", "origin", commit)  # as the text advises
    assert "dvc exp run -S" in provenance.reproduce_command(clone, {"git_commit": commit}, dump_yaml(AFTER))


def test_params_that_cannot_be_read_give_no_command(root: Path) -> None:
    git(root, "rm", "--quiet", "--cached", "params.yaml")
    git(root, "commit", "--quiet", "--message", "without params")
    without = git(root, "rev-parse", "HEAD")
    (root / "params.yaml").write_text("<<<<<<< HEAD\n")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "conflict")
    conflict = git(root, "rev-parse", "HEAD")
    for commit, reason in ((without, "but not in"), (conflict, "has no sections")):
        text = provenance.reproduce_command(root, {"git_commit": commit}, dump_yaml(AFTER))
        assert text.startswith(f"The training ran at commit {commit}. Its params and files are unknown (")
        assert reason in text
        assert "dvc" not in text


def test_the_removed_variables_are_those_that_git_calls_local() -> None:
    local = set(git(ROOT, "rev-parse", "--local-env-vars").split())
    assert local - set(GIT_REPOSITORY_VARIABLES) == {"GIT_CONFIG_COUNT", "GIT_CONFIG_PARAMETERS"}


def hook_environment(repository: Path) -> dict[str, str]:
    """What a hook of another repository sets."""
    paths = {"GIT_DIR": "", "GIT_INDEX_FILE": "index", "GIT_OBJECT_DIRECTORY": "objects", "GIT_CONFIG": "config"}
    return (
        dict(os.environ)
        | {name: str(repository / ".git" / path) for name, path in paths.items()}
        | {"GIT_WORK_TREE": str(repository), "GIT_PREFIX": "", "GIT_LITERAL_PATHSPECS": "1"}
        | {"PYTHONPATH": str(ROOT / "src")}
    )


def test_in_a_hook_of_another_repository_the_project_is_described(root: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("other")
    git(other, "init", "--quiet")
    git(other, "commit", "--quiet", "--allow-empty", "--message", "other")
    script = """
import cifar_resnet.environment_variables  # as every command and stage does
from pathlib import Path
from cifar_resnet.versioning.provenance import provenance_tags
tags = provenance_tags(Path.cwd())
print(tags["git_commit"], tags["git_dirty"])
"""
    (root / "dvc.lock").write_text("before")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "result")
    (root / "dvc.lock").write_text("after")  # an output
    command = [sys.executable, "-c", script]
    tags = subprocess.run(command, cwd=root, env=hook_environment(other), capture_output=True, text=True, check=True)
    assert tags.stdout.split() == [git(root, "rev-parse", "HEAD"), "false"]


def test_in_a_hook_of_another_repository_the_tests_do_not_change_it(root: Path) -> None:
    before = {path: path.read_bytes() for path in sorted((root / ".git").rglob("*")) if path.is_file()}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::{FIRST_TEST}"]
    result = subprocess.run(command, cwd=ROOT, env=hook_environment(root), capture_output=True, text=True, check=False)
    assert "1 passed" in result.stdout, result.stdout + result.stderr
    assert {path: path.read_bytes() for path in sorted((root / ".git").rglob("*")) if path.is_file()} == before
