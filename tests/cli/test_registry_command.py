import json
import shutil
import sys
from pathlib import Path

import pytest
from conftest import tiny, write_params
from mlflow import MlflowClient

from cifar_resnet.cli.main import main
from cifar_resnet.errors import UserError
from cifar_resnet.files import write_json
from cifar_resnet.registry.evidence import decode_mask, read_evidence
from cifar_resnet.registry.load import find_model
from cifar_resnet.registry.promotion import promotion_history, set_champion
from cifar_resnet.tracking.client import connect

NAME = "cifar10-resnet"


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with three versions; version 1, then version 2 became champion."""
    root = tmp_path_factory.mktemp("registered")
    write_params(root)
    with pytest.MonkeyPatch.context() as patch:
        tiny(patch)
        client = connect(root)
        client.create_registered_model(NAME)
        for accuracy in ("0.92", "0.93", "0.94"):
            tags = {"accuracy": accuracy, "accuracy_tta": "0.95", "parameters": "3190466", "decision_reason": "so"}
            client.create_model_version(NAME, source="/nowhere", tags=tags)
        for version in (1, 2):
            set_champion(client, NAME, version, action="promote", why=f"reason {version}")
        client.set_registered_model_alias(NAME, "challenger", "3")
    return root


@pytest.fixture
def root(registered: Path, tmp_path: Path) -> Path:
    shutil.copytree(registered, tmp_path, dirs_exist_ok=True)
    connect(tmp_path)  # reports that the project was copied
    return tmp_path


def run(root: Path, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cifar-resnet", "registry", *arguments])
        assert main(root) == 0


def registry_state(root: Path) -> tuple[dict[str, int], int]:
    """(aliases, number of recorded changes)."""
    client: MlflowClient = connect(root)
    aliases = client.get_registered_model(NAME).aliases
    return {alias: int(version) for alias, version in aliases.items()}, len(promotion_history(client, NAME))


def test_list_shows_every_version_with_its_evidence_and_the_history(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(root, "list")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["3", "challenger", "94.00%", "95.00%", "3,190,466", "so"],
        ["2", "champion", "93.00%", "95.00%", "3,190,466", "so"],
        ["1", "92.00%", "95.00%", "3,190,466", "so"],
    ]
    assert [line.split(": ")[1] for line in lines[5:]] == ["reason 1", "reason 2"]
    assert "promote   1 -> 2  " in lines[6]


def test_the_pretrained_weights_are_registered_once_with_their_evidence(
    shipped_pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics, config = (json.loads((shipped_pretrained / name).read_text()) for name in ("metrics.json", "model.json"))
    write_params(tmp_path, register={"min_accuracy": metrics["accuracy"]})
    run(tmp_path, "add", "pretrained")
    assert f"add: {NAME} version 1 is the champion: there was no champion\n" in capsys.readouterr().out
    run(tmp_path, "add", "pretrained")
    assert f"add: {NAME} version 1 is the champion: it is already the champion\n" in capsys.readouterr().out
    version = connect(tmp_path).get_model_version(NAME, "1")
    evidence = read_evidence(version)
    assert float(evidence["accuracy"]) == metrics["accuracy"]
    assert decode_mask(evidence["test_correct"]).mean() == metrics["accuracy"]
    assert evidence["test_data"] == config["provenance"]["test_data"]
    assert version.description == (shipped_pretrained / "model-card.md").read_text(encoding="utf-8")
    with find_model(tmp_path, None) as model:
        assert model.name == f"{NAME} version 1"
        registered, shipped = (folder / "model.safetensors" for folder in (model.folder, shipped_pretrained))
        assert registered.read_bytes() == shipped.read_bytes()


def test_promote_by_hand_is_recorded_with_its_reason(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(root, "promote", "3", "--why", "asked for")
    assert capsys.readouterr().out == f"promote: {NAME} version 3 (94.00%) replaces version 2 (93.00%): asked for\n"
    assert registry_state(root) == ({"champion": 3}, 3)
    run(root, "promote", "3")
    assert capsys.readouterr().out == f"{NAME} version 3 is already the champion; nothing to do\n"
    assert registry_state(root) == ({"champion": 3}, 3)


def test_rollback_restores_the_previous_champion(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(root, "rollback")
    assert capsys.readouterr().out == f"rollback: {NAME} version 1 (92.00%) replaces version 2 (93.00%): by hand\n"
    assert registry_state(root) == ({"champion": 1, "challenger": 3}, 3)
    with pytest.raises(UserError, match="no earlier champion is recorded"):
        run(root, "rollback")


@pytest.mark.parametrize("arguments", [["promote", "3"], ["rollback"]])
def test_a_dry_run_shows_the_change_and_changes_nothing(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    before = registry_state(root)
    run(root, *arguments, "--dry-run")
    message = capsys.readouterr().out
    assert message.startswith(f"would {arguments[0]}: {NAME} version ")
    assert message.endswith("replaces version 2 (93.00%); nothing was changed\n")
    assert registry_state(root) == before


def test_a_missing_version_or_model_is_an_error(root: Path) -> None:
    with pytest.raises(UserError, match=r"cifar10-resnet has no version 9; `make registry` lists the versions"):
        run(root, "promote", "9")
    write_params(root, register={"model_name": "other"})
    others = r"\(but cifar10-resnet; register.model_name in params.yaml selects one\)"
    message = rf"no model other is registered in /.*mlflow\.db {others}; `cifar-resnet registry add pretrained` regi"
    message += ".*`dvc repro --force --single-item register` registers what is trained already"
    with pytest.raises(UserError, match=message):
        run(root, "list")


def test_the_pretrained_weights_are_not_added_to_a_model_of_other_classes(
    shipped_pretrained: Path, tmp_path: Path
) -> None:
    assert shipped_pretrained.is_dir()
    write_params(tmp_path, register={"model_name": "own-images", "min_accuracy": 0.0})
    write_json(tmp_path / "data/prepared/statistics.json", {"classes": ["cat", "dog"]})
    with pytest.raises(
        UserError, match=r"know other classes \(airplane.*\) than data/prepared \(cat, dog\), so they are"
    ):
        run(tmp_path, "add", "pretrained")
    assert not (tmp_path / "mlflow.db").exists()
