"""Revisions (workspace, Git commits, DVC experiments) and their files in Git and in DVC's cache."""

import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dvc.api
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException, PathMissingError
from dvc.repo import Repo
from dvc.scm import RevError, SCMError
from pygit2 import GitError

from cifar_resnet.errors import UserError

WORKSPACE = "workspace"


@dataclass(frozen=True)
class Revision:
    """`name` is for messages; `commit` is empty for the workspace; `seconds` is the commit time since 1970."""

    name: str
    commit: str
    seconds: int


@contextmanager
def report_git_errors(root: Path) -> Iterator[None]:
    """
    Raises:
        UserError: if DVC's Git library refuses the repository, for example because another user owns it.
    """
    try:
        yield
    except GitError as error:
        raise UserError(
            f"Git cannot be used ({error}); if you trust the owner of the project, run "
            f"`git config --global --add safe.directory {shlex.quote(str(root))}`"
        ) from None


def read_revision_file(root: Path, revision: str, path: str) -> bytes:
    """Read a file from the workspace, or from Git or DVC's cache.

    Raises:
        UserError: if the file does not exist or cannot be read.
    """
    try:
        if revision == WORKSPACE:
            return (root / path).read_bytes()
        with report_git_errors(root), dvc.api.open(path, repo=str(root), rev=revision, mode="rb") as stream:
            content: bytes = stream.read()
            return content
    except RevError:
        raise UserError(
            f"{revision}: no such commit, branch, tag or experiment; `dvc exp list --all-commits` lists the experiments"
        ) from None
    except (OSError, DvcException, SCMError) as error:
        is_missing = isinstance(error, PathMissingError)
        reason = "neither in Git nor in DVC's cache" if is_missing else " ".join(str(error).split())
        advice = "run `dvc repro evaluate` there, or `dvc pull`"
        if revision == WORKSPACE:
            advice = "run `make repro` in the project's folder, or `dvc pull`"
        raise UserError(f"{revision}: no {path} ({reason}); {advice}") from None
    except AttributeError as error:
        if error.name != "tree":
            raise
        raise UserError(f"{revision}: not a commit; name a commit, a branch, a tag or an experiment of DVC") from None


def list_revisions(root: Path) -> list[Revision]:
    """List the workspace, then HEAD and every commit with experiments, each followed by its experiments.

    Raises:
        UserError: if `root` is not a DVC project in a Git repository with a commit.
    """
    try:
        with report_git_errors(root), Repo(str(root)) as repo:
            experiments = repo.experiments.ls(all_commits=True)
            head = repo.scm.get_rev()
            names = {head: "HEAD"} | {commit: commit[:7] for commit in experiments if commit != head}
            pairs = []
            for commit, name in names.items():
                pairs += [(name, commit), *experiments.get(commit, [])]
            times = {commit: repo.scm.resolve_commit(commit).commit_time for _, commit in pairs}
    except (DvcException, SCMError) as error:
        raise UserError(f"{root}: no DVC project with a Git commit ({error})") from None
    return [Revision(WORKSPACE, "", 0), *(Revision(name, commit, int(times[commit])) for name, commit in pairs)]


def copy_revision_files(root: Path, revision: Revision, patterns: Iterable[str], folder: Path) -> None:
    """Copy the revision's files that match glob patterns to the same relative paths in `folder`.

    Raises:
        UserError: if DVC tracks a file but its cache has no copy.
    """
    files = DVCFileSystem(str(root), rev=revision.commit or None)
    for path in (path for pattern in patterns for path in files.glob(pattern)):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        try:
            (folder / path).write_bytes(files.read_bytes(path))
        except (OSError, DvcException) as error:
            raise UserError(f"{revision.name}: no {path} ({error}); run `dvc pull`") from None


def dvc_md5(root: Path, revision: Revision, path: str) -> str:
    """The MD5 that DVC records for a file, also without a local copy; empty if DVC does not track it."""
    files = DVCFileSystem(str(root), rev=revision.commit or None)
    info = files.info(path) if files.exists(path) else {}
    return str(info.get("md5") or info.get("dvc_info", {}).get("md5") or "")


def require_temporary_copies(root: Path) -> None:
    """Check that DVC can run experiments in a temporary copy of the project.

    DVC 3.67 writes the copy's configuration files in ASCII, and takes the project's path for a part of a URL.

    Raises:
        UserError: if a path, or a configuration file that DVC copies, has characters that are not possible there.
    """
    try:
        with Repo(str(root)) as repo:
            project, cache = str(repo.root_dir), str(repo.cache.local_cache_dir)
            files = [Path(repo.scm.root_dir, ".git/config"), Path(str(repo.dvc_dir), "config.local")]
    except (DvcException, SCMError, GitError):
        return  # no project, which DVC itself reports
    problem = "with which DVC cannot run experiments with --temp or --queue"
    advice = "rename the folder, or use `dvc exp run` without --temp"
    if not cache.isascii():
        raise UserError(f"the path {cache} has characters outside ASCII, {problem}; {advice}")
    if "#" in project or "?" in project:
        raise UserError(f"the path {project} has # or ?, {problem}; {advice}")
    for file in files:
        if file.is_file() and not file.read_bytes().isascii():
            raise UserError(
                f"{file} has characters outside ASCII, {problem}; move these values to another file, for example by "
                "`git config --global`"
            )
