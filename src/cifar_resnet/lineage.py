"""Where a run comes from: commit, DVC experiment, what was changed since, and the commands that do it again."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from textwrap import shorten
from typing import Any

from cifar_resnet import params
from cifar_resnet.files import digest

TRAINING = ("preprocess.", "model.", "train.")
WRITTEN = ("dvc.lock", "data/")  # by the pipeline itself
OWN = ("params.yaml", *WRITTEN)  # told as -S, or written


def origin(root: Path) -> dict[str, str]:
    """Where the code came from: git commit, whether a file was changed since, DVC's experiment and baseline, and the
    hash of params.yaml."""
    others = [f":(exclude){each}" for each in WRITTEN]
    tags = {
        "git_commit": _git(root, "rev-parse", "HEAD"),
        "git_dirty": str(bool(_git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *others))).lower(),
        "dvc_experiment": os.environ.get("DVC_EXP_NAME", ""),
        "dvc_baseline": os.environ.get("DVC_EXP_BASELINE_REV", ""),
        "params": digest(root / "params.yaml") if (root / "params.yaml").exists() else "",
    }
    tags["mlflow.source.git.commit"] = tags["git_commit"]
    return {key: value for key, value in tags.items() if value}


def changes(root: Path, commit: str, text: str) -> list[str]:
    """What `text`, a params.yaml, has otherwise than that of `commit`, each as `dvc exp run -S` takes it."""
    before, after = (
        params.flat(params.sections(each)) for each in (_git(root, "show", f"{commit}:./params.yaml"), text)
    )
    return [f"{key}={_shown(value)}" for key, value in after.items() if before and before.get(key, ...) != value]


def title(root: Path, text: str, commit: str = "HEAD") -> str:
    """What `text`, a params.yaml, changes of the training, in a few words; empty if nothing."""
    found = changes(root, commit, text)
    return shorten(", ".join(each for each in found if each.startswith(TRAINING)), 200, placeholder=" ...")


def recipe(root: Path, commit: str, text: str, revision: str = "") -> str:
    """Markdown: the commands that train with `text`, a params.yaml, at `commit` again.

    Args:
        revision: where Git keeps the code that ran; by default it is the workspace's.
    """
    if not commit:
        return "No Git commit is known that would reproduce it."
    changed = changes(root, commit, text)
    overrides = "".join(f" -S {shlex.quote(change)}" for change in changed)
    command = f"dvc exp run{overrides}" if changed else "dvc repro"
    found = _git(root, "diff", "--name-only", "--relative", commit, *filter(None, [revision])).splitlines()
    other = [name for name in found if not name.startswith(OWN)]
    more = f"\n\nBesides, these files differ from that commit: {', '.join(other)}." if other else ""
    return f"To reproduce it:\n\n```\ngit checkout {commit}\n{command}\n```{more}"


def keeper(root: Path, path: str, revision: str = "") -> str:
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
