"""`dvc exp run --temp` and DVC's queue work in a copy of the project with only the files that Git and DVC track.

`python -m cifar_resnet.versioning.temporary_copy OPTIONS` checks the options of `dvc exp run --temp`.
"""

import os
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

from cifar_resnet.errors import UserError, run
from cifar_resnet.params.file import load_params

LATER_OUTPUTS = tuple(Path("data", name) for name in ("model", "evaluation", "registry"))  # not written yet


def require_tracked(root: Path, key: str, path: str) -> None:
    """Check, before a long training, that a later stage will find its input in the temporary copy.

    Args:
        key: the key of params.yaml that names the path.
        path: relative to `root`, or absolute; what the pipeline itself writes need not exist yet.

    Raises:
        UserError: if `root` is a temporary copy that does not have the path.
    """
    project = os.environ.get("DVC_ROOT")
    if project is None or Path(project).resolve() == root.resolve():
        return
    if not (root / path).exists() and not any(Path(path).is_relative_to(output) for output in LATER_OUTPUTS):
        raise UserError(
            f"params.yaml: {key} is {path}, which is not in the temporary copy of this experiment; track it with "
            "`git add` or `dvc add`, name it by its absolute path, or run without --temp and --queue"
        )


def require_own_pictures(root: Path, options: list[str]) -> None:
    """Check that an experiment in a temporary copy will find the folder of own pictures, if it uses one.

    Args:
        options: of `dvc exp run --temp`, which may change values of params.yaml with -S.

    Raises:
        UserError: if the folder does not exist, or would not be in the copy.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-S", "--set-param", action="append", default=[])
    parser.add_argument("-C", "--copy-paths", action="append", default=[])
    arguments, _ = parser.parse_known_args(options)
    values = load_params(root / "params.yaml").download.model_dump()
    values |= {key: value.strip("'\"") for key, _, value in (text.partition("=") for text in arguments.set_param)}
    dataset, folder = (values.get(f"download.{key}", values[key]) for key in ("dataset", "folder"))
    copied = map(Path, arguments.copy_paths)
    if dataset != "folder" or not folder:  # the stage refuses an empty name
        return
    if not (root / folder).exists():
        raise UserError(
            f"download.folder is {folder}, which does not exist; put your pictures there or name their folder"
        )
    if Path(folder).is_absolute() or Path(folder) in copied:
        return
    paths = [Path(folder), *Path(folder).parents[:-1]]
    tracked = ["git", "ls-files", "--", folder, *(f"{path}.dvc" for path in paths)]
    if not subprocess.run(tracked, cwd=root, capture_output=True, check=False).stdout:
        raise UserError(
            f"download.folder is {folder}, which neither Git nor DVC tracks, so that it is not in the temporary copy "
            f"of an experiment; run `dvc add {folder}`, name it by its absolute path, or add MORE='-C {folder}'"
        )


def check_options(root: Path) -> None:
    require_own_pictures(root, sys.argv[1:])


if __name__ == "__main__":
    run(check_options, "preset")
