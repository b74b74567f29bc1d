"""`dvc exp run --temp` and DVC's queue work in a copy of the project with only the files that Git and DVC track."""

import os
from pathlib import Path

from cifar_resnet.errors import UserError

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
