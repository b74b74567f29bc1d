"""The inputs of a running stage. DVC records them as they are when the stage ends, also if they changed meanwhile."""

from pathlib import Path

from cifar_resnet.errors import UserError
from cifar_resnet.files import file_hash
from cifar_resnet.params.file import flatten, raw_sections, read_yaml


def read_inputs(root: Path, stage: str) -> dict[str, str]:
    """What dvc.yaml lists for a stage: each value of its sections of params.yaml, and the hash of each file.

    Empty in a folder without dvc.yaml.
    """
    if not (root / "dvc.yaml").exists():
        return {}
    definition = read_yaml(root / "dvc.yaml", "dvc.yaml")["stages"][stage]
    sections = raw_sections((root / "params.yaml").read_text(encoding="utf-8"))
    values = flatten({name: sections.get(name, {}) for name in definition["params"]})
    files = [file for path in definition["deps"] for file in (root / path, *(root / path).rglob("*"))]
    return {f"params.yaml: {key}": str(value) for key, value in values.items()} | {
        str(file.relative_to(root)): file_hash(file)
        for file in files
        if file.is_file() and "__pycache__" not in file.parts
    }


def file_states(path: Path) -> dict[str, tuple[int, int]]:
    """Size and time of the last change, in ns, of a file or of all files in a folder; cheaper than their hashes."""
    states = {str(file): file.stat() for file in (path, *path.rglob("*")) if file.is_file()}
    return {file: (state.st_size, state.st_mtime_ns) for file, state in states.items()}


def require_same_files(path: Path, states: dict[str, tuple[int, int]]) -> None:
    """Check a file or folder of the user before a stage writes its outputs.

    Args:
        states: what `file_states` returned when the stage started.

    Raises:
        UserError: if a file was added, removed or changed.
    """
    now = file_states(path)
    if changed := sorted(file for file in states | now if states.get(file) != now.get(file)):
        others = f" (and {len(changed) - 1:,} more)" if len(changed) > 1 else ""
        raise UserError(
            f"{changed[0]} changed{others} while this stage read it, and DVC would record the new content with a "
            "result of the old one; run the same command again"
        )


def require_unchanged(root: Path, stage: str, inputs: dict[str, str]) -> None:
    """Check the inputs before a stage writes its outputs.

    Args:
        inputs: what `read_inputs` returned when the stage started.

    Raises:
        UserError: if one has changed.
    """
    now = read_inputs(root, stage)
    changed = sorted(key for key in inputs | now if inputs.get(key) != now.get(key))
    if changed:
        key = changed[0]
        values = f" from {inputs.get(key)} to {now.get(key)}" if key.startswith("params.yaml") else ""
        others = f" (and {len(changed) - 1:,} more)" if len(changed) > 1 else ""
        raise UserError(
            f"{key} changed{values}{others} while this stage ran, and DVC would record the new content with a result "
            "of the old one; restore it to keep this result, then run the same command again"
        )
