import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
from conftest import stage, tiny_images

from cifar_resnet.errors import UserError
from cifar_resnet.inference import pretrained
from cifar_resnet.inference.uncertainty import read_reliability
from cifar_resnet.registry.load import find_model
from cifar_resnet.registry.versions import (
    delete_duplicates,
    download_version,
    find_version,
    log_model,
    package_code,
    to_input_example,
    versions_of_model,
)
from cifar_resnet.tracking.client import connect, create_run
from cifar_resnet.tracking.run import Run


def test_of_versions_registered_at_the_same_time_the_oldest_is_kept(tmp_path: Path) -> None:
    client = connect(tmp_path)
    client.create_registered_model("model")
    tags = {"model": "a", "test_data": "t"}
    tag_sets = ({**tags, "model": "b"}, tags, {**tags, "test_data": "u"}, tags)
    created = [client.create_model_version("model", source="/nowhere", tags=tag_set) for tag_set in tag_sets]
    assert delete_duplicates(client, "model", tags, created[3]) == 2
    assert [int(version.version) for version in versions_of_model(client, "model", tags)] == [2]
    assert len(client.search_model_versions("name = 'model'")) == 3
    assert delete_duplicates(client, "model", tags, created[1]) == 2


def test_an_interrupted_registration_keeps_status_and_end_time_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(tmp_path)
    run_id = create_run(client, "trained", {})
    client.set_terminated(run_id, "FINISHED", 1_700_000_000_000)

    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mlflow.pyfunc, "log_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        log_model(Run(client, run_id), tmp_path, tmp_path, np.zeros((1, 32, 32, 3), np.uint8))
    info = client.get_run(run_id).info
    assert (info.status, info.end_time) == ("FINISHED", 1_700_000_000_000)


@pytest.mark.parametrize(
    "lost",
    [
        "mlartifacts",
        "mlartifacts/models/{model}/artifacts/artifacts",
        "mlartifacts/models/{model}/artifacts/artifacts/metrics.json",
    ],
)
def test_lost_files_of_a_version_are_restored_with_its_number_alias_and_tags(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    root = tmp_path / "project"
    shutil.copytree(project, root, ignore=shutil.ignore_patterns("raw", "train_*", "validation_*"))
    client = connect(root)
    before = find_version(client, "cifar10-resnet", "champion")
    assert before is not None
    path = root / lost.format(model=before.source.removeprefix("models:/"))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    stage("register").main(root)
    assert "the missing files of cifar10-resnet version 1 are restored" in capsys.readouterr().out
    after = find_version(client, "cifar10-resnet", "champion")
    assert after is not None
    assert (after.version, after.run_id, after.aliases) == (before.version, before.run_id, before.aliases)
    assert (after.tags, after.description) == (before.tags, before.description)
    model = mlflow.pyfunc.load_model("models:/cifar10-resnet@champion")
    assert len(model.predict(to_input_example(tiny_images(1, seed=0).pixels))) == 10
    stage("register").main(root)
    assert "restored" not in capsys.readouterr().out


def test_a_version_has_the_evaluation_of_its_model_in_place_and_downloaded(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(project, root, ignore=shutil.ignore_patterns("raw", "train_*", "validation_*"))
    version = find_version(connect(root), "cifar10-resnet", "champion")
    assert version is not None
    metrics = (root / "data/evaluation/metrics.json").read_text()
    shutil.rmtree(root / "data/evaluation")
    with find_model(root, "champion") as model:
        assert model.evaluation == model.folder
        assert (model.folder / "metrics.json").read_text() == metrics
        assert read_reliability(model.evaluation).bins
        artifacts = model.folder
    (tmp_path / "download").mkdir()
    download_version(version, tmp_path / "download")
    assert {path.name for path in (tmp_path / "download").iterdir() if path.is_file()} == {
        *("model.safetensors", "model.json", "metrics.json", "reliability.csv")
    }
    for name in ("metrics.json", "reliability.csv"):  # a version of an early commit has neither
        (artifacts / name).unlink()
        (tmp_path / "download" / name).unlink()
    download_version(version, tmp_path / "download")
    assert not (tmp_path / "download/metrics.json").exists()
    with find_model(root, "champion") as model:
        assert model.evaluation is None
        assert model.accuracy is not None


def test_a_version_stores_the_code_without_the_pretrained_weights() -> None:
    assert pretrained.FOLDER.is_dir()
    with package_code() as code:
        names = {path.relative_to(code).as_posix() for path in code.rglob("*")}
    assert code.name == "cifar_resnet"
    assert names >= {"__init__.py", "registry/served_model.py", "inference/pretrained.py"}
    assert not any(name.startswith("pretrained") or "__pycache__" in name for name in names)


@pytest.mark.parametrize("path", ["data/model/model.json", "data/evaluation/predictions.csv"])
def test_a_missing_input_is_an_error_with_the_command_that_creates_it(project: Path, tmp_path: Path, path: str) -> None:
    root = tmp_path / "project"
    shutil.copytree(project, root, ignore=shutil.ignore_patterns("raw", "mlartifacts", "mlflow.db*"))
    (root / path).unlink()
    with pytest.raises(UserError, match=f"^{path}: not found; `dvc repro evaluate` restores or creates"):
        stage("register").main(root)


def test_champion_and_challenger_are_found_by_their_aliases(tmp_path: Path) -> None:
    client = connect(tmp_path)
    client.create_registered_model("model")
    for _ in range(2):
        client.create_model_version("model", source="/nowhere")
    client.set_registered_model_alias("model", "champion", "2")
    assert find_version(client, "model", "challenger") is None
    client.set_registered_model_alias("model", "challenger", "1")
    versions = [find_version(client, "model", alias) for alias in ("champion", "challenger")]
    assert [version and int(version.version) for version in versions] == [2, 1]
