"""Inputs of a stage that change while it runs."""

from pathlib import Path

import pytest
from conftest import write_params

from cifar_resnet.errors import UserError
from cifar_resnet.versioning.inputs import read_inputs, require_unchanged


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_params(tmp_path)
    (tmp_path / "code/__pycache__").mkdir(parents=True)
    for name in ("code/a.py", "b.py", "other.py"):
        (tmp_path / name).write_text("1")
    (tmp_path / "dvc.yaml").write_text("stages: {train: {cmd: x, params: [model, train], deps: [code, b.py]}}")
    return tmp_path


@pytest.mark.parametrize("path", ["code/a.py", "b.py"])
def test_a_changed_file_is_an_error_that_names_it(root: Path, path: str) -> None:
    inputs = read_inputs(root, "train")
    (root / path).write_text("2")
    with pytest.raises(UserError, match=rf"^{path} changed while this stage ran, and DVC would record"):
        require_unchanged(root, "train", inputs)


def test_a_changed_value_is_an_error_with_both_values(root: Path) -> None:
    inputs = read_inputs(root, "train")
    write_params(root, train={"seed": 5, "sam_rho": 0.1})
    with pytest.raises(UserError, match=r"^params.yaml: train.sam_rho changed from 0 to 0.1 \(and 1 more\) while"):
        require_unchanged(root, "train", inputs)


@pytest.mark.parametrize("text", ["", "train: [", "train: 3\nmodel: {}\n"])
def test_a_params_file_that_is_being_edited_is_an_error_too(root: Path, text: str) -> None:
    inputs = read_inputs(root, "train")
    (root / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"^params.yaml: model.activation changed from silu to None \(and \d+ more\)"):
        require_unchanged(root, "train", inputs)


def test_what_the_stage_does_not_depend_on_may_change(root: Path) -> None:
    inputs = read_inputs(root, "train")
    write_params(root, search={"trials": 99}, checkpoint={"epochs": 2})
    for name in ("other.py", "code/__pycache__/a.pyc"):
        (root / name).write_text("2")
    require_unchanged(root, "train", inputs)


def test_without_dvc_there_is_nothing_to_check(tmp_path: Path) -> None:
    assert read_inputs(tmp_path, "train") == {}
