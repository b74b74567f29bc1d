"""Provenance of a run: commit, DVC experiment, uncommitted changes, and the commands that reproduce it."""

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from cifar_resnet.files import file_hash
from cifar_resnet.params.file import Params, flatten, params_summary, raw_sections
from cifar_resnet.params.overrides import to_hydra

TRAINING_SECTIONS = ("preprocess.", "model.", "train.")
TAGS = (
    *("git_commit", "git_dirty", "git_error", "mlflow.source.git.commit"),
    *("dvc_experiment", "dvc_baseline", "params"),
)
PIPELINE_OUTPUTS = ("dvc.lock", "data/")
MAX_FILES = 20  # named in a run's description; own pictures can be thousands


@dataclass(frozen=True)
class TrainingSource:
    """A training's short name, provenance tags, and Markdown with the commands that reproduce it."""

    name: str
    tags: dict[str, str]
    reproduce: str


class GitError(Exception):
    """Git cannot be used, or cannot read what was requested; the message is Git's own, in one line."""


def describe_training(root: Path, params: Params) -> TrainingSource:
    """The provenance of a training in the workspace."""
    tags, text = provenance_tags(root), (root / "params.yaml").read_text(encoding="utf-8")
    changes = run_name(root, text) or params_summary(params)
    return TrainingSource(with_experiment(changes, tags), tags, reproduce_command(root, tags, text))


def is_of_another_training(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether metrics.json and model.json name different trainings; early versions name none.

    It happens between train and evaluate, for example after `dvc repro train`.
    """
    evaluated, trained = metrics.get("mlflow_run"), config.get("provenance", {}).get("mlflow_run")
    return evaluated is not None and trained is not None and evaluated != trained


def provenance_tags(root: Path) -> dict[str, str]:
    """Git commit, whether a tracked file differs from it, DVC experiment and baseline, and the hash of params.yaml.

    `git_error` replaces the tags that Git could not provide.
    """
    tags = {
        "dvc_experiment": os.environ.get("DVC_EXP_NAME", ""),
        "dvc_baseline": os.environ.get("DVC_EXP_BASELINE_REV", ""),
        "params": file_hash(root / "params.yaml") if (root / "params.yaml").exists() else "",
    }
    excluded = [f":(exclude){path}" for path in PIPELINE_OUTPUTS]
    try:
        _git(root, "cat-file", "-e", "HEAD:./params.yaml")  # fails if HEAD is of a repository around the project
        tags["git_commit"] = tags["mlflow.source.git.commit"] = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *excluded)
        tags["git_dirty"] = str(bool(changes)).lower()
    except GitError as error:
        tags["git_error"] = str(error)
    return {key: value for key, value in tags.items() if value}


def training_tags(provenance: Mapping[str, Any]) -> dict[str, str]:
    """What `provenance_tags` returned for the training, from the provenance in model.json."""
    return {name: provenance[name] for name in TAGS if name in provenance}


def recorded_params(root: Path) -> dict[str, dict[str, Any]]:
    """Sections model and train of the training that wrote data/model, from dvc.lock; empty if DVC recorded another."""
    try:
        stage = raw_sections((root / "dvc.lock").read_text(encoding="utf-8"))["stages"]["train"]
        hashes = {output["path"]: output.get("md5") for output in stage["outs"]}
        is_recorded = hashes["data/model/model.json"] == file_hash(root / "data/model/model.json")
        sections: dict[str, dict[str, Any]] = stage["params"]["params.yaml"] if is_recorded else {}
    except (OSError, LookupError, TypeError):
        return {}
    return sections


def params_overrides(root: Path, commit: str, text: str) -> list[str]:
    """Differences of `text`, a params.yaml, from the params.yaml of `commit`, as arguments of `dvc exp run -S`.

    Section `search` is skipped: no stage uses it.

    Raises:
        GitError: if the params of `commit` cannot be read.
    """
    before, after = raw_sections(_git(root, "show", f"{commit}:./params.yaml")), raw_sections(text)
    if not before or not after:
        raise GitError(f"params.yaml has no sections {'before' if before else f'at {commit}'}")
    before, after = ({name: keys for name, keys in part.items() if name != "search"} for part in (before, after))
    old, new = flatten(before), flatten(after)
    changed = [key for key, value in new.items() if old.get(key, ...) != value]
    return [
        *(f"{'' if key in old else '+'}{key}={to_hydra(new[key])}" for key in changed),
        *(f"~{key}" for key in old if key not in new),
    ]


def run_name(root: Path, text: str, commit: str = "HEAD") -> str:
    """The overrides in `text`, a params.yaml, that affect training, in at most 200 characters.

    Keys of `model:` and `train:` are without their section, so that names differ early. Empty if there are none, or if
    the params of `commit` are unknown.
    """
    try:
        overrides = params_overrides(root, commit, text) if commit else []
    except GitError:
        return ""
    training = [override for override in overrides if override.lstrip("+~").startswith(TRAINING_SECTIONS)]
    short = [re.sub(r"^([+~]?)(?:model|train)\.", r"\1", override) for override in training]
    return shorten(", ".join(short), 200, placeholder=" ...")


def with_experiment(name: str, tags: Mapping[str, str]) -> str:
    """The name of a run, after that of its DVC experiment, if it is one."""
    return ": ".join(filter(None, (tags.get("dvc_experiment", ""), name)))


def reproduce_command(root: Path, provenance: Mapping[str, str], text: str, revision: str = "") -> str:
    """Markdown with the commands that reproduce a training, or the reason why they are unknown.

    Args:
        provenance: what `provenance_tags` returned for the training.
        text: its params.yaml.
        revision: Git revision of the code that ran; by default the workspace.
    """
    commit = provenance.get("git_commit", "")
    if not commit:
        return f"The Git commit is unknown ({provenance.get('git_error', 'none is recorded')})."
    try:
        if not _git(root, "rev-list", "--no-walk", "--ignore-missing", commit):
            return (
                f"The training ran at commit {commit}, which is not in this clone. Its params and files are unknown. "
                f"If the remote has the commit, `git fetch origin {commit}` gets it."
            )
        overrides = params_overrides(root, commit, text)
        changed = _git(root, "diff", "--name-only", "--relative", commit, *filter(None, [revision])).splitlines()
    except GitError as error:
        return f"The training ran at commit {commit}. Its params and files are unknown ({error})."
    options = "".join(f" -S {shlex.quote(override)}" for override in overrides)
    command = f"dvc exp run{options}" if overrides else "dvc repro"
    # The options cover params.yaml.
    other = [name for name in changed if not name.startswith(("params.yaml", *PIPELINE_OUTPUTS))]
    more = f" and {len(other) - MAX_FILES:,} more" if len(other) > MAX_FILES else ""
    names = ", ".join(other[:MAX_FILES]) + more
    note = f"\n\nBesides, these files differ from that commit: {names}." if other else ""
    return f"To reproduce it:\n\n```\ngit checkout {commit}\n{command}\n```{note}"


def last_commit_of(root: Path, path: str, revision: str = "") -> str:
    """The last commit that changed `path`, up to `revision` (default: HEAD).

    Empty if Git knows none, or if no revision is given and the workspace has uncommitted changes of `path`.
    """
    try:
        if not revision and _git(root, "status", "--porcelain", "--", path):
            return ""
        return _git(root, "rev-list", "--max-count=1", revision or "HEAD", "--", path)
    except GitError:
        return ""


def _git(root: Path, *arguments: str) -> str:
    """What git prints.

    Raises:
        GitError: if git cannot be started or fails.
    """
    command = ["git", "-c", "core.quotePath=false", *arguments]
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, encoding="utf-8", errors="replace", check=False)
    except OSError as error:
        raise GitError(f"{error.filename}: {error.strerror}") from None
    if result.returncode:
        raise GitError(" ".join(result.stderr.split()) or f"git {arguments[0]} failed, code {result.returncode}")
    return result.stdout.strip()
