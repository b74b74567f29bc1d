from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import write_params

from cifar_resnet.cli.demo import MAX_CLASSES, classes_text, load_models
from cifar_resnet.cli.main import make_parser
from cifar_resnet.inference.uncertainty import Reliability


def loaded(**classes: list[str]) -> Any:
    """Models by name, of which the text needs name and classes only."""
    return {name: (SimpleNamespace(name=name, classes=names), Reliability([])) for name, names in classes.items()}


def test_the_introduction_names_the_classes_once_if_all_models_know_the_same() -> None:
    assert classes_text(loaded(champion=["cat", "dog"], pretrained=["cat", "dog"])) == "cat, dog"


def test_the_introduction_names_the_models_of_each_list_of_classes() -> None:
    models = loaded(champion=["owl", "cow"], challenger=["owl", "cow"], pretrained=["cat", "dog"])
    assert classes_text(models) == "owl, cow (champion, challenger); cat, dog (pretrained)"


def test_a_long_list_of_classes_is_cut() -> None:
    text = classes_text(loaded(champion=[str(number) for number in range(100)]))
    assert text == ", ".join(str(number) for number in range(MAX_CLASSES)) + " ..."


@pytest.mark.parametrize("port", ["0", "70000", "-1", "x"])
def test_a_number_that_is_no_port_is_wrong_usage(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        make_parser().parse_args(["demo", f"--port={port}"])
    assert ended.value.code == 2
    assert f"{port}: a number from 1 to 65535 needed" in capsys.readouterr().err


def test_a_registry_that_cannot_be_read_is_reported_once_and_the_other_models_are_loaded(
    shipped_pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(tmp_path)
    (tmp_path / "data/model").mkdir(parents=True)
    (tmp_path / "data/model/model.json").write_text("{}")  # as in a fresh clone
    assert [model.name for model, _ in load_models(tmp_path).values()] == ["pretrained"]
    assert capsys.readouterr().err == ""
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    assert [model.name for model, _ in load_models(tmp_path).values()] == ["pretrained"]
    error = capsys.readouterr().err
    assert error.startswith(f"demo: MLflow at {tmp_path / 'mlflow.db'} cannot be used")
    assert error.count("\n") == 1
