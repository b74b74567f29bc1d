"""Environment variables of commands and stages. Import this module before torch and MLflow, which read them once.

Git's variables that select a repository are removed: a hook of another repository sets them, and Git and DVC would
read and change that repository. Other variables that the user has set keep their values. OMP_WAIT_POLICY=passive:
OpenMP threads sleep at barriers instead of spinning. Spinning threads block the cores for other processes: with one
other busy process, prediction takes five times as long. DVC needs a user name, and an author for the commits of its
experiments; a container may have neither.

White space around MLFLOW_TRACKING_URI, for example the end of a line, would become part of a file's name.

Every program of .venv runs this file at its start (.ci/portable_venv.py), so it imports nothing of this package.
In the programs of this project, which import it, a missing package of the extra `train` is an error of one line, and so
is Ctrl-C before `errors.run`.
"""

import getpass
import logging
import os
import re
import subprocess
import sys
from types import TracebackType

# `git rev-parse --local-env-vars` without GIT_CONFIG_COUNT and GIT_CONFIG_PARAMETERS, which hold the user's
# configuration; two variables of git-push; and one that Magit sets, with which Git takes `:(exclude)` for a file name.
GIT_REPOSITORY_VARIABLES = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_IMPLICIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_PREFIX"),
    *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_CONFIG", "GIT_GRAFT_FILE", "GIT_SHALLOW_FILE"),
    *("GIT_NO_REPLACE_OBJECTS", "GIT_REPLACE_REF_BASE", "GIT_INTERNAL_SUPER_PREFIX"),
    *("GIT_NAMESPACE", "GIT_QUARANTINE_PATH", "GIT_LITERAL_PATHSPECS"),
)
for name in GIT_REPOSITORY_VARIABLES:
    os.environ.pop(name, None)

for name, value in (
    ("OMP_WAIT_POLICY", "passive"),
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
    ("MLFLOW_LOGGING_LEVEL", "WARNING"),
    ("GRADIO_ANALYTICS_ENABLED", "False"),
):
    os.environ.setdefault(name, value)

if "MLFLOW_TRACKING_URI" in os.environ:
    os.environ["MLFLOW_TRACKING_URI"] = os.environ["MLFLOW_TRACKING_URI"].strip()

try:
    getpass.getuser()
except (KeyError, OSError):  # /etc/passwd does not have the user
    os.environ["USER"] = f"uid{os.getuid()}"
if os.path.expanduser("~") == "~":  # noqa: PTH111, nor a home, and HOME is not set
    os.environ["HOME"] = "/"

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns where it cannot write its cache below HOME

try:
    git_user = subprocess.run(["git", "config", "--get-regexp", "^user[.]"], capture_output=True, check=False).stdout
except OSError:  # Git is not installed
    git_user = b""
for name, value in (("name", getpass.getuser()), ("email", f"{getpass.getuser()}@localhost")):
    if not re.search(rf"^user.{name} .".encode(), git_user, re.MULTILINE):
        os.environ.setdefault(f"GIT_AUTHOR_{name.upper()}", value)
        os.environ.setdefault(f"GIT_COMMITTER_{name.upper()}", value)

BASE_PACKAGES = {"numpy", "PIL"}  # missing only if another Python than that of .venv runs
TRAIN_PACKAGES = {  # of pyproject.toml's extra, as code imports them
    *("torch", "torchvision", "dvc", "mlflow", "optuna", "sklearn", "scipy", "ruamel", "pydantic", "safetensors"),
    *("matplotlib", "psutil", "sqlalchemy", "filelock", "rich", "onnx", "pygit2"),
}


def report_in_one_line(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Like sys.__excepthook__, but one line for Ctrl-C, and for a missing package."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    program = os.path.basename(sys.argv[0]).removesuffix(".py").replace("__main__", "cifar-resnet")  # noqa: PTH119
    if isinstance(error, KeyboardInterrupt):
        sys.stderr.write(f"{program}: interrupted; run the same command again\n")
    elif package in BASE_PACKAGES | TRAIN_PACKAGES:
        advice = "run `make setup` and `source .venv/bin/activate`, or pip install 'cifar-resnet[train]'"
        sys.stderr.write(f"{program}: {package} is not installed; {advice}\n")
    else:
        sys.__excepthook__(kind, error, traceback)


if __name__ == "cifar_resnet.environment_variables":  # imported by a program of this project
    sys.excepthook = report_in_one_line
