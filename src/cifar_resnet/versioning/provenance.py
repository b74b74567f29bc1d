"""Where a run comes from: commit, DVC experiment, what was changed since, and the commands that do it again."""

import json
import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from cifar_resnet.files import file_hash
from cifar_resnet.params.file import Params, flatten, params_summary, raw_sections

TRAINING = ("preprocess.", "model.", "train.")
WRITTEN = ("dvc.lock", "data/")  # by the pipeline itself
OWN = ("params.yaml", *WRITTEN)  # told as -S, or written


@dataclass(frozen=True)
class TrainingSource:
    """What a training starts from: a short name, tags, and Markdown with the commands that repeat it."""

    name: str
    tags: dict[str, str]
    reproduce: str


def describe_training(root: Path, params: Params) -> TrainingSource:
    tags, text = provenance_tags(root), (root / "params.yaml").read_text(encoding="utf-8")
    name = run_name(root, text) or params_summary(params)
    return TrainingSource(name, tags, reproduce_command(root, tags.get("git_commit", ""), text))


def provenance_tags(root: Path) -> dict[str, str]:
    """Where the code came from: git commit, whether a file was changed since, DVC's experiment and baseline, and the
    hash of params.yaml."""
    others = [f":(exclude){each}" for each in WRITTEN]
    tags = {
        "git_commit": _git(root, "rev-parse", "HEAD"),
        "git_dirty": str(bool(_git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *others))).lower(),
        "dvc_experiment": os.environ.get("DVC_EXP_NAME", ""),
        "dvc_baseline": os.environ.get("DVC_EXP_BASELINE_REV", ""),
        "params": file_hash(root / "params.yaml") if (root / "params.yaml").exists() else "",
    }
    tags["mlflow.source.git.commit"] = tags["git_commit"]
    return {key: value for key, value in tags.items() if value}


def params_overrides(root: Path, commit: str, text: str) -> list[str]:
    """What `text`, a params.yaml, has otherwise than that of `commit`, each as `dvc exp run -S` takes it."""
    before, after = (flatten(raw_sections(each)) for each in (_git(root, "show", f"{commit}:./params.yaml"), text))
    return [f"{key}={_shown(value)}" for key, value in after.items() if before and before.get(key, ...) != value]


def run_name(root: Path, text: str, commit: str = "HEAD") -> str:
    """What `text`, a params.yaml, changes of the training, in a few words; empty if nothing."""
    found = params_overrides(root, commit, text)
    return shorten(", ".join(each for each in found if each.startswith(TRAINING)), 200, placeholder=" ...")


def reproduce_command(root: Path, commit: str, text: str, revision: str = "") -> str:
    """Markdown: the commands that train with `text`, a params.yaml, at `commit` again.

    Args:
        revision: where Git keeps the code that ran; by default it is the workspace's.
    """
    if not commit:
        return "No Git commit is known that would reproduce it."
    changed = params_overrides(root, commit, text)
    overrides = "".join(f" -S {shlex.quote(change)}" for change in changed)
    command = f"dvc exp run{overrides}" if changed else "dvc repro"
    found = _git(root, "diff", "--name-only", "--relative", commit, *filter(None, [revision])).splitlines()
    other = [name for name in found if not name.startswith(OWN)]
    more = f"\n\nBesides, these files differ from that commit: {', '.join(other)}." if other else ""
    return f"To reproduce it:\n\n```\ngit checkout {commit}\n{command}\n```{more}"


def last_commit_of(root: Path, path: str, revision: str = "") -> str:
    """The commit that brought `path` as it is at `revision`, by default in the workspace; empty if none did."""
    if not revision and _git(root, "status", "--porcelain", "--", path):
        return ""
    return _git(root, "log", "-1", "--format=%H", revision or "HEAD", "--", path)


def _shown(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[\w./-]+", value):
        return value
    return json.dumps(value, separators=(",", ":"))


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip()
