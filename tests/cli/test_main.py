"""The command line as a user meets it: arguments in, text and exit codes out."""

import csv
import json
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_images
from PIL import Image

from cifar_resnet.cli import main as command
from cifar_resnet.cli.predict import SOME_SKIPPED
from cifar_resnet.errors import UserError
from cifar_resnet.tracking.client import connect


def run(monkeypatch: pytest.MonkeyPatch, root: Path, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["cifar_resnet", *map(str, arguments)])
    return command.main(root)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two pictures, one of them with an awkward name, and a file that is none."""
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
    assert printed.err == "predict: 2 images, model: cifar10-resnet version 1\n"


@pytest.mark.parametrize("which", ["champion", "1", "the run", "the folder", "the file"])
def test_every_way_to_name_the_model_gives_the_same_answers(
    project: Path, tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "a.npy", tiny_images(1, seed=3).pixels)
    card = json.loads((project / "data/model/model.json").read_text())
    model = {
        "the run": card["provenance"]["mlflow_run"],
        "the folder": project / "data/model",
        "the file": project / "data/model/model.safetensors",
    }.get(which, which)
    answers = []
    for wanted in (model, project / "data/model"):
        output = tmp_path / "out.json"
        arguments = ("predict", tmp_path / "a.npy", "--model", wanted, "--format", "json", "--output", output)
        assert run(monkeypatch, project, *arguments) == 0
        answers.append(json.loads(output.read_text()))
    assert answers[0] == answers[1]
    assert len(answers[0]) == 10


def test_without_a_registry_the_workspaces_model_answers(
    project: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(project / "data/model", photos.parent / "data/model")
    assert run(monkeypatch, photos.parent, "predict", "photos/*.png") == 0
    printed = capsys.readouterr()
    assert printed.err == "predict: 2 images, by data/model\n"
    assert [line.rsplit("  ", 1)[1] for line in printed.out.splitlines()] == ["photos/a.png", 'photos/b, "c".png']
    assert not (photos.parent / "mlflow.db").exists()


@pytest.mark.parametrize("wanted", ["7", "champoin", "0123456789abcdef0123456789abcdef"])
def test_a_model_that_nobody_knows_is_refused(
    project: Path, photos: Path, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=f"--model {wanted}: neither a path nor a champion"):
        run(monkeypatch, project, "predict", photos, "--model", wanted)


def test_a_version_whose_files_are_gone_is_refused(
    project: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(project)
    client.create_model_version("cifar10-resnet", source="/nowhere")
    latest = max(int(version.version) for version in client.search_model_versions("name='cifar10-resnet'"))
    try:
        with pytest.raises(UserError, match="MLflow cannot give the model"):
            run(monkeypatch, project, "predict", photos, "--model", latest)
    finally:
        client.delete_model_version("cifar10-resnet", str(latest))


def test_what_cannot_be_read_is_told_and_the_rest_predicted(
    project: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    model = ("--model", project / "data/model")
    assert run(monkeypatch, photos, "predict", ".", *model) == SOME_SKIPPED
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2
    assert (
        printed.err.splitlines()[0]
        == "skipped: bad.png: not readable: no picture of a kind that is taken (PNG, JPEG, WEBP, BMP, GIF, TIFF)"
    )
    assert "2 images, 1 skipped" in printed.err
    with pytest.raises(UserError, match=r"bad.png: not readable"):
        run(monkeypatch, photos, "predict", ".", *model, "--strict", "--output", photos / "out.csv")
    assert not (photos / "out.csv").exists()
    with pytest.raises(UserError, match="no image to predict"):
        run(monkeypatch, photos, "predict", "bad.png", *model)


def test_an_output_that_cannot_be_written_is_named(
    project: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("predict", photos, "--model", project / "data/model", "--output", photos)
    with pytest.raises(UserError, match=r"photos: cannot be used \(Is a directory\)"):
        run(monkeypatch, project, *arguments)
    assert len(list(photos.iterdir())) == 2


def test_the_registry_answers_too(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, project, "registry", "list") == 0
    assert "champion" in capsys.readouterr().out
    assert run(monkeypatch, project, "registry", "promote", 1, "--dry-run") == 0
    assert "is the champion already" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [[], ["registry"], ["predict"], ["predict", "a", "--top", "0"], ["predict", "a", "--format", "x"]]
)
def test_wrong_usage_exits_with_2(tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, tmp_path, *arguments)
    assert stopped.value.code == 2


def test_the_command_as_a_process(project: Path, photos: Path) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    start = [sys.executable, "-m", "cifar_resnet", "predict"]
    model = ["--model", str(project / "data/model")]

    def code(*arguments: str) -> tuple[int, str]:
        done = subprocess.run([*start, *arguments], cwd=photos, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    assert code("a.png", *model)[0] == 0
    assert code(".", *model)[0] == 3
    assert code("bad.png", *model)[0] == 1
    failed, said = code("a.png")
    assert failed == 1
    assert said.startswith("cifar_resnet: data/model") or "no usable model" in said
