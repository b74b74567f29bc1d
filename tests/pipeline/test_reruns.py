"""Which stages DVC reruns after an edit. Outputs are placeholders: DVC compares hashes, and no stage runs here."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from conftest import copy_project, dvc

from cifar_resnet.params.file import parse_yaml

pytestmark = pytest.mark.pipeline
SOURCE = "src/cifar_resnet"
NO_EFFECT = ("cli", "tracking", "registry", "recovery", "search", "params", "versioning")
NO_EFFECT_FILES = ("errors.py", "progress.py", "environment_variables.py")


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this project where DVC considers every stage up to date."""
    root = tmp_path_factory.mktemp("committed")
    copy_project(root, without=("tests/", "docs/", "benchmarks/"))
    for stage in parse_yaml((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values():
        for output in stage["outs"] + stage.get("metrics", []):
            path = root / (output if isinstance(output, str) else next(iter(output)))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("placeholder")
    dvc(root, "commit", "--force", "--quiet")
    assert changed_stages(root) == set()
    return root


def changed_stages(root: Path, *stages: str) -> set[str]:
    """Those of `stages`, by default of all, that have changed dependencies or outputs."""
    return set(json.loads(dvc(root, "status", "--json", *stages)))


@contextmanager
def edited(path: Path) -> Iterator[None]:
    """Append a line to a file, or create it, while the block runs."""
    before = path.read_bytes() if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((before or b"") + b"# edited\n")
    try:
        yield
    finally:
        path.unlink() if before is None else path.write_bytes(before)


def test_code_without_effect_on_a_result_reruns_no_training_and_no_evaluation(committed: Path) -> None:
    paths = [path for package in NO_EFFECT for path in (committed / SOURCE / package).rglob("*.py")]
    paths += [committed / SOURCE / name for name in NO_EFFECT_FILES]
    assert len(paths) > 20
    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(edited(path))
        assert changed_stages(committed, "train", "evaluate") == set()


@pytest.mark.parametrize("name", ["resnet.py", "new.py"])
def test_a_network_file_reruns_train_and_every_later_stage(name: str, committed: Path) -> None:
    with edited(committed / SOURCE / "models" / name):
        assert changed_stages(committed) == {"train", "evaluate", "register", "predict"}


def test_a_new_model_reruns_every_later_stage(committed: Path) -> None:
    with edited(committed / "data/model/model.safetensors"):
        assert changed_stages(committed, "evaluate", "register", "predict") == {"evaluate", "register", "predict"}


def test_a_new_picture_of_yours_reruns_download(committed: Path) -> None:
    with edited(committed / "data/own/cat/new.png"):
        assert changed_stages(committed) == {"download"}


@pytest.mark.parametrize(
    ("path", "stages"), [("training/augment.py", {"train"}), ("evaluation/plots.py", {"evaluate"})]
)
def test_a_file_reruns_only_the_stage_that_uses_it(path: str, stages: set[str], committed: Path) -> None:
    with edited(committed / SOURCE / path):
        assert changed_stages(committed) == stages


def test_other_pretrained_weights_and_bytecode_rerun_no_stage(committed: Path) -> None:
    paths = [committed / SOURCE / "models/__pycache__/resnet.cpython-313.pyc"]
    paths += [committed / SOURCE / "pretrained" / name for name in ("model.safetensors", "model.json", "metrics.json")]
    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(edited(path))
        assert changed_stages(committed) == set()
