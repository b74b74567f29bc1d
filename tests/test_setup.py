"""The set-up: .venv in a project that moves, Make's rules, environments without user, identity or repository."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import ROOT, copy_project, dvc, git

from cifar_resnet.errors import UserError
from cifar_resnet.versioning.revisions import require_temporary_copies

SCRIPT = (
    "# -*- coding: utf-8 -*-\nimport os, sys, cifar_resnet\nprint(sys.prefix, cifar_resnet.__file__, sys.argv[1:])\n"
)
UNUSUAL_NAME = 'it\'s a "b" #c%d?e$f&g`h`\\i'
IDENTITY = {f"GIT_{role}_{key}": "a@b" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
PIPELINE = "stages:\n  train:\n    cmd: 'true'\n    params: [train]\n"


def shell(command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | variables
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def create_project_with_venv(root: Path) -> None:
    """A package and a .venv as `make setup` writes them, with a console script in each of pip's two forms."""
    (root / "src/cifar_resnet").mkdir(parents=True)
    for name in ("__init__.py", "environment_variables.py"):
        shutil.copy(ROOT / "src/cifar_resnet" / name, root / "src/cifar_resnet")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / ".venv"], check=True)
    binaries = root / ".venv/bin"
    shebangs = {
        "short": f"#!{binaries}/python3\n",
        "long": f"#!/bin/sh\n'''exec' \"{binaries}/python3\" \"$0\" \"$@\"\n' '''\n",
    }
    for name, shebang in shebangs.items():
        (binaries / name).write_text(shebang + SCRIPT)
        (binaries / name).chmod(0o755)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(root / ".venv")}))
    (packages / "__editable__.cifar_resnet-0.1.0.pth").write_text(f"{root}/src\n")
    subprocess.run([binaries / "python", ROOT / ".ci/portable_venv.py"], check=True)


@pytest.mark.parametrize("method", ["moved", "copied"])
def test_a_project_that_is_moved_or_copied_with_its_venv_uses_its_own_code(tmp_path: Path, method: str) -> None:
    create_project_with_venv(tmp_path / "p")
    root = tmp_path / UNUSUAL_NAME
    if method == "moved":
        (tmp_path / "p").rename(root)
    else:
        shutil.copytree(tmp_path / "p", root, symlinks=True)
    expected = f"{root}/.venv {root}/src/cifar_resnet/__init__.py ['a b']\n"
    for name in ("short", "long"):
        assert shell(f".venv/bin/{name} 'a b'", root).stdout == expected
        assert shell(f"source .venv/bin/activate; cd /; {name} 'a b'", root).stdout == expected
    (tmp_path / "link").symlink_to(root / ".venv/bin/short")
    assert shell("../link 'a b'", root).stdout == expected


def test_a_venv_can_be_made_portable_twice(tmp_path: Path) -> None:
    create_project_with_venv(tmp_path)
    files = [path for path in (tmp_path / ".venv").rglob("*") if path.is_file() and not path.is_symlink()]
    before = {path: path.read_bytes() for path in files if "__pycache__" not in path.parts}
    subprocess.run([tmp_path / ".venv/bin/python", ROOT / ".ci/portable_venv.py"], check=True)
    assert {path: path.read_bytes() for path in before} == before


def test_programs_of_the_venv_start_with_the_variables_of_the_package(tmp_path: Path) -> None:
    create_project_with_venv(tmp_path)
    names = '[os.environ.get(name) for name in ("GIT_DIR", "MLFLOW_TRACKING_URI")]'
    command = f".venv/bin/python -c 'import os, sys; print({names}, \"cifar_resnet\" in sys.modules)'"
    variables = {"GIT_DIR": "/other/.git", "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db\r\n"}
    assert shell(command, tmp_path, **variables).stdout == "[None, 'sqlite:///mlflow.db'] False\n"


@pytest.mark.parametrize(
    "program", ["stages/download.py", "stages/train.py", "stages/evaluate.py", "src/cifar_resnet/__main__.py"]
)
def test_a_program_without_the_extra_train_says_in_one_line_what_to_install(program: str) -> None:
    start = "import runpy, sys; sys.modules['torch'] = sys.modules['pydantic'] = None; sys.argv = sys.argv[1:]"
    command = [sys.executable, "-c", f"{start}; runpy.run_path(sys.argv[0], run_name='__main__')", program]
    environment = os.environ | {"PYTHONPATH": "src"}
    result = subprocess.run(
        [*command, "registry", "list"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    name = "cifar-resnet" if "__main__" in program else Path(program).stem
    package = "pydantic" if "__main__" in program or "download" in program else "torch"
    advice = "run `make setup` and `source .venv/bin/activate`, or pip install 'cifar-resnet[train]'"
    assert result.stderr == f"{name}: {package} is not installed; {advice}\n"
    assert (result.returncode, result.stdout) == (1, "")


def test_another_missing_package_keeps_its_traceback() -> None:
    command = [sys.executable, "-c", "import cifar_resnet.environment_variables, no_such_package"]
    result = subprocess.run(command, cwd=ROOT / "src", capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError: No module named 'no_such_package'" in result.stderr
    assert "Traceback" in result.stderr


FAKE_PYTHON = f"""\
#!/bin/sh
case "$1 $2" in
  "-c "*) exec {shlex.quote(sys.executable)} "$@" ;;
  "-m venv") rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
esac
echo "$@" >> calls
case "$1" in *install.py) ! [ -e failing ] ;; esac
"""


@pytest.fixture
def make_project(tmp_path: Path) -> Path:
    """A folder with Make's rules and a Python that records what it is asked to install."""
    root = tmp_path / UNUSUAL_NAME
    root.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, root)
    (root / "fake_python").write_text(FAKE_PYTHON)
    (root / "fake_python").chmod(0o755)
    return root


def setup(root: Path) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run `make setup`; returns its result and the programs that it started."""
    (root / "calls").unlink(missing_ok=True)
    result = shell("make setup PYTHON=./fake_python", root)
    return result, (root / "calls").read_text().splitlines() if (root / "calls").exists() else []


def test_a_folder_without_a_repository_is_an_error_before_the_installation(make_project: Path) -> None:
    result, calls = setup(make_project)
    message = (
        "this folder is not in a Git repository, which DVC needs: clone the project, or run: "
        "git init && git add --all && git commit --message start"
    )
    assert result.stderr.splitlines()[0] == message
    assert (result.returncode, result.stdout, calls) == (2, "", [])
    assert not (make_project / ".venv").exists()
    commands = message.partition("run: ")[2]
    assert shell(commands, make_project, **IDENTITY).returncode == 0
    assert setup(make_project)[0].returncode == 0


def test_the_set_up_installs_again_only_if_the_requirements_or_python_changed(make_project: Path) -> None:
    git(make_project, "init", "--quiet")
    result, calls = setup(make_project)
    assert result.returncode == 0, result.stderr
    assert "installing into .venv" in result.stdout
    assert calls == ["-m venv --clear .venv", ".ci/install.py train,test", ".ci/portable_venv.py"]
    os.utime(make_project / "pyproject.toml")  # as after `git checkout` or `cp -r`
    assert setup(make_project)[1] == []
    (make_project / "constraints.txt").write_text("# other requirements\n")
    assert setup(make_project)[1][0] == "-m venv .venv"
    (make_project / ".venv/bin/python").unlink()
    (make_project / ".venv/bin/python").symlink_to("/missing/python")
    assert setup(make_project)[1][0] == "-m venv --clear .venv"
    assert setup(make_project)[1] == []


def test_after_an_interrupted_update_the_venv_is_made_anew(make_project: Path) -> None:
    git(make_project, "init", "--quiet")
    setup(make_project)
    (make_project / "constraints.txt").write_text("# other requirements\n")
    (make_project / "failing").touch()
    result, calls = setup(make_project)
    assert (result.returncode, calls) == (2, ["-m venv .venv", ".ci/install.py train,test"])
    (make_project / "failing").unlink()
    assert setup(make_project)[1][0] == "-m venv --clear .venv"
    assert setup(make_project)[1] == []


def test_an_extra_is_installed_once_on_demand(make_project: Path) -> None:
    git(make_project, "init", "--quiet")
    setup(make_project)
    for expected in ([".ci/install.py demo", ".ci/portable_venv.py"], []):
        (make_project / "calls").unlink(missing_ok=True)
        assert shell("make .venv/demo PYTHON=./fake_python", make_project).returncode == 0
        calls = (make_project / "calls").read_text().splitlines() if expected else []
        assert calls == expected
        assert (make_project / "calls").exists() == bool(expected)
    assert setup(make_project)[1] == []


def test_make_in_a_hook_of_another_repository_addresses_this_project(make_project: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for folder in (make_project, other):
        git(tmp_path, "init", "--quiet", str(folder))
    (make_project / "where.mk").write_text("include Makefile\nwhere:\n\t@git rev-parse --absolute-git-dir\n")
    result = shell("make -f where.mk where PYTHON=./fake_python", make_project, GIT_DIR=str(other / ".git"))
    assert result.stdout.splitlines() == [str(make_project / ".git")], result.stderr


def test_a_home_that_cannot_be_written_to_is_no_warning() -> None:
    code = "import cifar_resnet.environment_variables, matplotlib"
    result = shell(
        f"env --unset=MPLCONFIGDIR {shlex.quote(sys.executable)} -c {shlex.quote(code)}", ROOT,
        HOME="/dev/null", XDG_CONFIG_HOME="/dev/null", XDG_CACHE_HOME="/dev/null", PYTHONPATH=str(ROOT / "src"),
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")


def create_pipeline(root: Path) -> None:
    """A committed DVC project with one stage that does nothing."""
    root.mkdir()
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "params.yaml").write_text("train: {seed: 0}\n")
    git(root, "init", "--quiet")
    dvc(root, "init", "--quiet")
    dvc(root, "repro", "--quiet")
    git(root, "add", "--all")
    assert shell("git commit --quiet --message start", root, **IDENTITY).returncode == 0


DVC_WITHOUT_USER = """\
import pwd, runpy, sys
def unknown(uid): raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
runpy.run_path(sys.argv[1])
from dvc.cli import main
sys.exit(main(sys.argv[2:]))
"""


def test_dvc_runs_experiments_without_a_user_name_a_home_and_a_git_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "project"
    create_pipeline(root)
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME", "HOME", *IDENTITY):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    variables = ROOT / "src/cifar_resnet/environment_variables.py"
    # site.main() runs environment_variables.py already if `make setup` has made .venv portable.
    start = f"import os, site; site.main()\nfor name in {('USER', 'HOME', *IDENTITY)}: os.environ.pop(name, None)\n"
    command = [sys.executable, "-S", "-c", start + DVC_WITHOUT_USER, variables]
    options = ["exp", "run", "--temp", "--name", "a", "-S", "train.seed=1"]
    result = subprocess.run([*command, *options], cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    authors = git(root, "for-each-ref", "--format=%(authorname) %(authoremail)", "refs/exps/*/*/a")
    assert authors == f"uid{os.getuid()} <uid{os.getuid()}@localhost>\n"


def test_the_users_git_identity_is_kept(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "config", "user.name", "Jürgen")
    variables = shlex.quote(str(ROOT / "src/cifar_resnet/environment_variables.py"))
    script = "import os, runpy, sys; runpy.run_path(sys.argv[1]); os.execvp('git', ['git', 'var', 'GIT_AUTHOR_IDENT'])"
    command = f"unset {' '.join(IDENTITY)}; {shlex.quote(sys.executable)} -c {shlex.quote(script)} {variables}"
    result = shell(command, tmp_path, HOME=str(tmp_path), USER="juergen", GIT_CONFIG_NOSYSTEM="1")
    assert result.stdout.startswith("Jürgen <juergen@localhost> ")


def dvc_temporary_run(root: Path) -> "subprocess.CompletedProcess[str]":
    arguments = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "-S", "train.seed=1"]
    return subprocess.run(arguments, cwd=root, env=os.environ | IDENTITY, capture_output=True, text=True, check=False)


def test_a_path_in_which_dvc_cannot_run_experiments_is_an_error(tmp_path: Path) -> None:
    root = tmp_path / 'it\'s 100% "mine" $x; `y`'
    create_pipeline(root)
    require_temporary_copies(root)
    assert dvc_temporary_run(root).returncode == 0
    for name, message in (("Käse", "Käse/.dvc/cache has characters outside ASCII"), ("a#b", "a#b has # or [?]")):
        root = root.rename(tmp_path / name)
        with pytest.raises(UserError, match=f"{message}, with which DVC cannot run"):
            require_temporary_copies(root)
        assert dvc_temporary_run(root).returncode == 255  # if this fails, DVC is fixed: remove the check
    root = root.rename(tmp_path / "ASCII")
    git(root, "config", "user.name", "Jürgen")
    with pytest.raises(UserError, match=r"ASCII/.git/config has characters outside ASCII, with which DVC cannot run"):
        require_temporary_copies(root)
    assert "'ascii' codec can't encode" in dvc_temporary_run(root).stderr


def test_core_autocrlf_does_not_change_a_file(tmp_path: Path) -> None:
    source, clone = tmp_path / "source", tmp_path / "clone"
    source.mkdir()
    copy_project(source)
    (source / "data/model").mkdir(parents=True)
    (source / "data/model/history.csv").write_bytes(b"epoch\r\n1\n")  # an output whose hash is in dvc.lock
    git(source, "add", "--all", "--force")
    git(source, "commit", "--quiet", "--message", "start")
    git(tmp_path, "-c", "core.autocrlf=true", "clone", "--quiet", str(source), str(clone))
    for name in git(source, "ls-files").splitlines():
        assert (clone / name).read_bytes() == (source / name).read_bytes(), name
