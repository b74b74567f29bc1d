"""The command line from a user's view: arguments in, text and exit codes out."""

import csv
import json
import shutil
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_images
from PIL import Image

import cifar_resnet
from cifar_resnet import errors
from cifar_resnet.cli import main as command
from cifar_resnet.cli.predict import SOME_SKIPPED
from cifar_resnet.errors import UserError
from cifar_resnet.tracking.client import connect


def run(monkeypatch: pytest.MonkeyPatch, root: Path, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["cifar-resnet", *map(str, arguments)])
    return command.main(root)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two pictures, one of them with quotes and a comma in its name."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", 'b, "c".png'):
        Image.fromarray(np.full((50, 60, 3), 90, np.uint8)).save(folder / name)
    return folder


def test_the_champion_predicts_a_folder(
    project: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, project, "predict", photos, "--format", "csv", "--top", 2) == 0
    printed = capsys.readouterr()
    table = list(csv.DictReader(StringIO(printed.out)))
    assert [Path(row["file"]).name for row in table] == ["a.png", 'b, "c".png']
    assert float(table[0]["confidence"]) > float(table[0]["confidence_2"]) > 0
    accuracy = json.loads((project / "data/evaluation/metrics.json").read_text())["accuracy"]
    assert printed.err.splitlines()[0] == (
        f"predict: 2 images, model: cifar10-resnet version 1 (test accuracy {accuracy:.2%})"
    )


@pytest.mark.parametrize("name", ["champion", "1", "the run", "the URI", "the folder", "the file"])
def test_every_name_of_the_model_gives_the_same_predictions(
    project: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "a.npy", tiny_images(1, seed=3).pixels)
    config = json.loads((project / "data/model/model.json").read_text())
    requested = {
        "the run": config["provenance"]["mlflow_run"],
        "the URI": "models:/cifar10-resnet@champion",
        "the folder": project / "data/model",
        "the file": project / "data/model/model.safetensors",
    }.get(name, name)
    predictions = []
    for model in (requested, project / "data/model"):
        output = tmp_path / "out.json"
        arguments = ("predict", tmp_path / "a.npy", "--model", model, "--format", "json", "--output", output)
        assert run(monkeypatch, project, *arguments) == 0
        predictions.append(json.loads(output.read_text()))
    assert len(predictions[0]) == len(predictions[1]) == 10
    if name in ("the folder", "the file"):
        assert predictions[0] == predictions[1]
    for registered, saved in zip(*predictions, strict=True):  # the version has an int8 export
        (first,), (second,) = registered["classes"], saved["classes"]
        assert first["class_name"] == second["class_name"]
        assert abs(first["confidence"] - second["confidence"]) < 0.1


def test_without_a_registry_the_workspaces_model_predicts(
    project: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(project / "data/model", photos.parent / "data/model")
    assert run(monkeypatch, photos.parent, "predict", "photos/*.png") == 0
    printed = capsys.readouterr()
    assert printed.err == "predict: 2 images, model: data/model (test accuracy unknown)\n"
    assert [line.rsplit("  ", 1)[1] for line in printed.out.splitlines()] == ["photos/a.png", 'photos/b, "c".png']
    assert not (photos.parent / "mlflow.db").exists()


@pytest.mark.parametrize("name", ["7", "champoin", "0123456789abcdef0123456789abcdef"])
def test_an_unknown_model_is_an_error(project: Path, photos: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=f"model {name} not found in .*: neither a path nor pretrained, the champion"):
        run(monkeypatch, project, "predict", photos, "--model", name)


def test_a_file_that_is_not_a_model_is_an_error(project: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"a\.png: not a model; pass a model\.safetensors"):
        run(monkeypatch, project, "predict", photos, "--model", photos / "a.png")


def test_an_exported_file_is_only_for_predict(project: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "a.onnx").touch()
    for use in (
        lambda: cifar_resnet.load(photos / "a.onnx"),
        lambda: run(monkeypatch, project, "export", photos / "a.onnx", "--output", photos / "b.onnx"),
    ):
        with pytest.raises(UserError, match=r"a.onnx: an exported file, only for `cifar-resnet predict --model`"):
            use()
    assert not (photos / "b.onnx").exists()


def test_a_version_without_files_is_an_error(project: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect(project)
    client.create_model_version("cifar10-resnet", source="/nowhere")
    latest = max(int(version.version) for version in client.search_model_versions("name='cifar10-resnet'"))
    try:
        with pytest.raises(UserError, match="MLflow cannot provide the model"):
            run(monkeypatch, project, "predict", photos, "--model", latest)
    finally:
        client.delete_model_version("cifar10-resnet", str(latest))


def test_without_a_reachable_registry_the_model_of_the_workspace_predicts(
    project: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert run(monkeypatch, project, "predict", photos) == 0
    problem, summary, *_ = capsys.readouterr().err.splitlines()
    assert problem.startswith("MLflow at http://127.0.0.1:9 cannot be used (")
    assert problem.endswith("; using data/model instead")
    assert summary.startswith("predict: 2 images, model: data/model (test accuracy ")
    with pytest.raises(UserError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be used"):
        run(monkeypatch, project, "predict", photos, "--model", "champion")


def test_a_champion_without_files_is_replaced_by_the_model_of_the_workspace(
    project: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = connect(project)
    version = client.create_model_version("cifar10-resnet", source="/nowhere").version
    champion = client.get_registered_model("cifar10-resnet").aliases["champion"]
    client.set_registered_model_alias("cifar10-resnet", "champion", version)
    try:
        assert run(monkeypatch, project, "predict", photos) == 0
    finally:
        client.set_registered_model_alias("cifar10-resnet", "champion", champion)
        client.delete_model_version("cifar10-resnet", version)
    assert "; using data/model instead\npredict: 2 images" in capsys.readouterr().err


def test_a_model_with_a_higher_test_accuracy_is_named_unless_the_user_has_named_one(
    project: Path,
    photos: Path,
    shipped_pretrained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = photos.parent
    shutil.copytree(project / "data/model", root / "data/model")
    metrics = json.loads((project / "data/evaluation/metrics.json").read_text())
    (root / "data/evaluation").mkdir()
    (root / "data/evaluation/metrics.json").write_text(json.dumps(metrics | {"accuracy": 0.25}))
    assert run(monkeypatch, root, "predict", "photos/a.png") == 0
    used, better = capsys.readouterr().err.splitlines()
    assert used == "predict: 1 image, model: data/model (test accuracy 25.00%)"
    assert better == f"predict: pretrained (test accuracy {metrics['accuracy']:.2%}) is better: --model pretrained"
    assert run(monkeypatch, root, "predict", "photos/a.png", "--model", "data/model") == 0
    assert capsys.readouterr().err == f"{used}\n"
    assert run(monkeypatch, root, "predict", "photos/a.png", "--model", "pretrained") == 0
    assert capsys.readouterr().err.startswith("predict: 1 image, model: pretrained (test accuracy ")


def test_unreadable_images_are_reported_and_all_others_predicted(
    model_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    model = ("--model", model_path)
    assert run(monkeypatch, photos, "predict", ".", *model) == SOME_SKIPPED
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2
    reason = "not a picture in a supported format (PNG, JPEG, WEBP, BMP, GIF, TIFF, AVIF, HEIF)"
    assert printed.err.splitlines()[0] == f"skipped: bad.png: not readable: {reason}"
    assert "2 images, 1 skipped" in printed.err
    with pytest.raises(UserError, match=r"bad.png: not readable"):
        run(monkeypatch, photos, "predict", ".", *model, "--strict", "--output", photos / "out.csv")
    assert not (photos / "out.csv").exists()
    with pytest.raises(UserError, match="no image to predict"):
        run(monkeypatch, photos, "predict", "bad.png", *model)


def test_files_that_are_not_pictures_are_counted_and_no_error(
    model_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("Thumbs.db", "._a.png", "notes.txt"):
        (photos / name).write_bytes(b"no picture")
    assert run(monkeypatch, photos, "predict", ".", "--model", model_path, "--strict") == 0
    assert capsys.readouterr().err.startswith("predict: 2 images, 3 other files ignored, model: ")


def test_the_device_is_checked_before_the_model(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda **_: None)
    with pytest.raises(UserError, match="device cuda is not available"):
        run(monkeypatch, photos, "predict", "a.png", "--model", "missing", "--device", "cuda")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "the output cannot be written (No space left on device)"),
        (OSError("not a regular file"), "not a regular file"),
        (OSError(13, "Permission denied", "a.csv"), "a.csv: cannot be used (Permission denied)"),
    ],
)
def test_a_system_error_is_one_line_with_the_file_if_there_is_one(
    error: OSError, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as raised:
        errors.run(fail, "predict")
    assert raised.value.code == f"predict: {message}"


def test_below_the_projects_folder_one_line_says_that_its_models_are_not_used(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data/model").mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).touch()
    folder = tmp_path / "album/may"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert run(monkeypatch, folder, "predict", photos, "--output", "o.csv") == 0
    assert (folder / "o.csv").stat().st_size > 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("predict: 2 images -> o.csv, model: pretrained (test accuracy ")
    assert lines[1:] == [f"predict: {tmp_path} has a project; run the command there to use its models"]


def test_a_deleted_current_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(SystemExit) as raised:
        errors.run(lambda _: None, "predict")
    monkeypatch.chdir(tmp_path)
    assert raised.value.code == "predict: the current folder no longer exists; change to another one"


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", ""),
        ("compare", "HEAD", ""),
        ("compare", "--output", ""),
        ("export", "", "--output", "a.onnx"),
        ("export", "--output", ""),
        ("predict", "a.png", "--output", ""),
        ("search", "best", "--output", ""),
        ("registry", "promote", "1", "--why", ""),
    ],
)
def test_an_empty_argument_is_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as raised:
        run(monkeypatch, tmp_path, *arguments)
    assert raised.value.code == 2
    assert "an empty text is no path or name; is a variable of the shell unset?" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_an_error(
    project: Path, model_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("predict", photos, "--model", model_path, "--output", photos)
    with pytest.raises(IsADirectoryError):
        run(monkeypatch, project, *arguments)
    assert len(list(photos.iterdir())) == 2


def test_the_registry_lists_and_promotes(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, project, "registry", "list") == 0
    assert "champion" in capsys.readouterr().out
    assert run(monkeypatch, project, "registry", "promote", 1, "--dry-run") == 0
    assert "is already the champion" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [[], ["registry"], ["predict"], ["predict", "a", "--top", "0"], ["predict", "a", "--format", "x"]]
)
def test_wrong_usage_exits_with_2(tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run(monkeypatch, tmp_path, *arguments)
    assert exit_info.value.code == 2
