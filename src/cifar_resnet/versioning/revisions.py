"""What Git and DVC keep: files of a commit, of a DVC experiment, or of the workspace."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import dvc.api
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import SCMError

from cifar_resnet.errors import UserError

WORKSPACE = "workspace"


@dataclass(frozen=True)
class Revision:
    """`name` is for people, `commit` empty for the workspace; `seconds`, since 1970, is when it was made."""

    name: str
    commit: str
    seconds: int


def read_revision_file(root: Path, revision: str, path: str) -> bytes:
    """A file's bytes, from the workspace or as Git or DVC keep it.

    Raises:
        UserError: if it cannot be had.
    """
    try:
        if revision == WORKSPACE:
            return (root / path).read_bytes()
        with dvc.api.open(path, repo=str(root), rev=revision, mode="rb") as stream:
            found: bytes = stream.read()
            return found
    except (OSError, DvcException, SCMError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{revision}: no {path} ({said}); run `dvc repro evaluate` there, or `dvc pull`") from None


def list_revisions(root: Path) -> list[Revision]:
    """The workspace, then HEAD and every commit with experiments, each followed by its experiments.

    Raises:
        UserError: if `root` is no DVC project in a Git repository.
    """
    try:
        with Repo(str(root)) as repo:
            found = repo.experiments.ls(all_commits=True)
            head = repo.scm.get_rev()
            names = {head: "HEAD"} | {commit: commit[:7] for commit in found if commit != head}
            pairs = []
            for commit, name in names.items():
                pairs += [(name, commit), *found.get(commit, [])]
            times = {commit: repo.scm.resolve_commit(commit).commit_time for _, commit in pairs}
    except (DvcException, SCMError) as error:
        raise UserError(f"{root}: no DVC project with a Git commit ({error})") from None
    return [Revision(WORKSPACE, "", 0), *(Revision(name, commit, int(times[commit])) for name, commit in pairs)]


def copy_revision_files(root: Path, revision: Revision, patterns: Iterable[str], folder: Path) -> None:
    """Copy those of its files that match, from Git or DVC's cache, into the same places below `folder`.

    Raises:
        UserError: if DVC knows a file and has no copy of it.
    """
    files = DVCFileSystem(str(root), rev=revision.commit or None)
    for path in (path for pattern in patterns for path in files.glob(pattern)):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        try:
            (folder / path).write_bytes(files.read_bytes(path))
        except (OSError, DvcException) as error:
            raise UserError(f"{revision.name}: no {path} ({error}); run `dvc pull`") from None


def dvc_md5(root: Path, revision: Revision, path: str) -> str:
    """The hash by which DVC knows a file, which need not be here; empty if it knows none."""
    files = DVCFileSystem(str(root), rev=revision.commit or None)
    found = files.info(path) if files.exists(path) else {}
    return str(found.get("md5") or found.get("dvc_info", {}).get("md5") or "")
