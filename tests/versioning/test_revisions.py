import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import dvc, git

from cifar_resnet.errors import UserError
from cifar_resnet.versioning.revisions import read_revision_file

CODE = """
from pathlib import Path
from cifar_resnet.errors import run
from cifar_resnet.versioning import revisions
run({function}, "name")
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.parametrize(
    "function", ["revisions.list_revisions", "lambda root: revisions.read_revision_file(root, 'HEAD', 'file')"]
)
def test_a_repository_of_another_user_is_an_error_of_one_line_with_the_solution(tmp_path: Path, function: str) -> None:
    root, home = tmp_path / "it's", tmp_path / "home"
    for folder in (root, home):
        folder.mkdir()
    (root / "file").touch()
    git(root, "init", "--quiet")
    dvc(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "start")
    for path in (root, root / ".git"):
        os.chown(path, 12345, 12345)
    command = [sys.executable, "-c", CODE.format(function=function)]
    environment = os.environ | {"HOME": str(home)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert line.startswith("name: Git cannot be used (")
    assert "is not owned by current user" in line
    solution = line.split("`")[1]
    subprocess.run(["bash", "-c", solution], env=environment, check=True)
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert "owned" not in done.stderr


@pytest.mark.parametrize("revision", ["HEAD:file", "HEAD^{tree}"])
def test_a_file_or_folder_of_a_commit_is_not_a_revision(tmp_path: Path, revision: str) -> None:
    (tmp_path / "file").touch()
    git(tmp_path, "init", "--quiet")
    dvc(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "start")
    assert read_revision_file(tmp_path, "HEAD", "file") == b""
    with pytest.raises(UserError) as caught:
        read_revision_file(tmp_path, revision, "file")
    assert str(caught.value) == (f"{revision}: not a commit; name a commit, a branch, a tag or an experiment of DVC")
