"""Runs each stage on the tiny data and checks its files."""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from conftest import ROOT, dump_yaml, rows, stage, tiny_images, tiny_values, write_params, write_raw
from PIL import Image

from cifar_resnet.data import cifar10
from cifar_resnet.data.dataset import write_array
from cifar_resnet.device import select_device, select_dtype
from cifar_resnet.errors import UserError, run
from cifar_resnet.evaluation.compare import read_result
from cifar_resnet.files import file_hash, write_json
from cifar_resnet.inference import backend
from cifar_resnet.inference.familiarity import familiarity
from cifar_resnet.inference.onnx_export import MIN_AGREEMENT
from cifar_resnet.inference.predictor import predict_logits
from cifar_resnet.models.saved_model import load_model, save_model
from cifar_resnet.params.file import load_params
from cifar_resnet.recovery.checkpoint import training_folder
from cifar_resnet.registry.card import read_card
from cifar_resnet.registry.evidence import READABLE_TAGS, decode_mask, pack_evidence, read_evidence
from cifar_resnet.tracking.client import connect, experiment_id
from cifar_resnet.training.history import read_history


def test_download_writes_six_verified_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_raw(tmp_path / "source")
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in (tmp_path / "source").iterdir()}
    monkeypatch.setattr(cifar10, "MD5", md5)
    write_params(tmp_path, download={"sources": [str(tmp_path / "source")]})
    stage("download").main(tmp_path)
    written = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in (tmp_path / "data/raw").iterdir()}
    assert written == md5


def test_download_deletes_no_file_of_the_user(tmp_path: Path) -> None:
    write_raw(tmp_path / "data/raw")
    (tmp_path / "data/raw/cifar-10-binary.tar.gz").write_bytes(b"archive")
    write_params(tmp_path, download={"sources": ["data/raw/cifar-10-binary.tar.gz"]})
    with pytest.raises(
        UserError, match=r"data/raw has cifar-10-binary.tar.gz, which this stage did not write; move it"
    ):
        stage("download").main(tmp_path)
    assert len(list((tmp_path / "data/raw").iterdir())) == 7


def test_download_of_own_pictures_keeps_hidden_files_and_after_an_error_all_files(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", per_class=3, seed=1)
    write_params(tmp_path, download={"dataset": "folder", "folder": "photos"})
    stage("download").main(tmp_path)
    raw = tmp_path / "data/raw"
    (raw / ".notes").write_text("of the user")
    before = {path.name: path.read_bytes() for path in raw.iterdir()}
    for download in ({"folder": "missing"}, {"folder": "photos", "strict": True}):
        (tmp_path / "photos/Cat/broken.png").write_bytes(b"text")
        write_params(tmp_path, download={"dataset": "folder", **download})
        with pytest.raises(UserError):
            stage("download").main(tmp_path)
        assert {path.name: path.read_bytes() for path in raw.iterdir()} == before
    (tmp_path / "photos/Cat/broken.png").unlink()
    stage("download").main(tmp_path)
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == before


def test_download_deletes_what_a_killed_download_has_left_and_nothing_else(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", per_class=3, seed=1)
    raw = tmp_path / "data/raw"
    for file in (".x1/train_images.npy", ".x2/data_batch_1.bin", ".drafts/train_images.npy", ".drafts/notes"):
        (raw / file).parent.mkdir(parents=True, exist_ok=True)
        (raw / file).touch()
    (raw / ".empty").mkdir()
    write_params(tmp_path, download={"dataset": "folder", "folder": "photos"})
    stage("download").main(tmp_path)
    assert sorted(path.name for path in raw.glob(".*")) == [".drafts", ".empty"]
    assert len(list((raw / ".drafts").iterdir())) == 2


def test_pictures_that_are_added_while_a_stage_reads_are_an_error(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path / "photos", per_class=3, seed=1)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/model").symlink_to(project / "data/model")
    write_params(tmp_path, download={"dataset": "folder", "folder": "photos"}, predict={"input": "photos"})
    for name, function in (("download", "read_class_folders"), ("predict", "write_predictions_csv")):
        module = stage(name)
        with monkeypatch.context() as patch:
            patch.setattr(module, function, then_add_a_picture(getattr(module, function), tmp_path / "photos/Cat"))
            with pytest.raises(UserError, match=r"photos/Cat/new.png changed while this stage read it"):
                module.main(tmp_path)
        (tmp_path / "photos/Cat/new.png").unlink()
        module.main(tmp_path)


def then_add_a_picture(read: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """`read`, after which the folder has one picture more."""

    def read_then_add(*arguments: object) -> Any:
        result = read(*arguments)
        shutil.copy(min(folder.iterdir()), folder / "new.png")
        return result

    return read_then_add


def test_the_files_in_data_raw_can_be_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_raw(tmp_path / "data/raw")
    (tmp_path / "data/raw/classes.json").touch()  # of own pictures before
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in (tmp_path / "data/raw").glob("*.bin")}
    monkeypatch.setattr(cifar10, "MD5", md5)
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, download={"sources": ["data/raw"]})
    stage("download").main(tmp_path)
    written = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in (tmp_path / "data/raw").iterdir()}
    assert written == md5


def write_photos(folder: Path, per_class: int, seed: int) -> None:
    """Pictures of the tiny data as PNG files of 40 x 30 pixels, one folder for each class."""
    images = tiny_images(per_class, seed)
    for number, (pixels, label) in enumerate(zip(images.pixels, images.labels.tolist(), strict=True)):
        path = folder / cifar10.CLASSES[label].title() / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).resize((40, 30)).save(path)


def test_own_pictures_become_arrays_of_the_same_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path / "photos", per_class=10, seed=1)
    for path in sorted((tmp_path / "photos/Ship").iterdir())[:3]:
        path.unlink()
    (tmp_path / "photos/Cat/broken.png").write_bytes(b"text")
    write_params(tmp_path, download={"dataset": "folder", "folder": "photos/"})
    write_raw(tmp_path / "data/raw")  # a download of CIFAR-10 before
    stage("download").main(tmp_path)
    output = capsys.readouterr()
    assert output.out == "download: 97 pictures of 10 classes from photos -> data/raw, 1 skipped\n"
    assert output.err.startswith("skipped: photos/Cat/broken.png: not readable: not a picture")
    assert {path.suffix for path in (tmp_path / "data/raw").iterdir()} == {".npy", ".csv", ".json"}
    stage("preprocess").main(tmp_path)
    assert capsys.readouterr().out == (
        "preprocess: 68 train, 10 validation, 19 test images -> data/prepared; "
        "10 classes of unequal size: 7 images of Ship to 10 of Airplane\n"
    )
    statistics = json.loads((tmp_path / "data/prepared/statistics.json").read_text())
    assert statistics["source"] == "photos"
    assert statistics["classes"] == [name.title() for name in cifar10.CLASSES]
    assert statistics["images_per_class"]["test"]["Ship"] == 1
    for name, count in statistics["images"].items():
        assert np.load(tmp_path / f"data/prepared/{name}_images.npy", allow_pickle=False).shape == (count, 3, 32, 32)
        assert np.load(tmp_path / f"data/prepared/{name}_labels.npy", allow_pickle=False).dtype == np.int64
    manifest = rows(tmp_path / "data/raw/manifest.csv")
    hashes = {row["file"]: row["md5"] for row in manifest}
    assert len(hashes) == len(manifest) == 97
    for file, md5 in hashes.items():
        assert hashlib.md5((tmp_path / "photos" / file).read_bytes()).hexdigest() == md5


def test_preprocess_refuses_a_picture_in_two_splits_and_reports_copies_within_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, split in enumerate(("train", "test")):
        write_photos(tmp_path / "photos" / split, per_class=5, seed=seed)
    cats = sorted((tmp_path / "photos/train/Cat").iterdir())
    shutil.copy(cats[0], cats[0].with_name("copy.png"))
    write_params(tmp_path, download={"dataset": "folder", "folder": "photos"})
    for name in ("download", "preprocess"):
        stage(name).main(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "download: 51 train, 50 test pictures of 10 classes from photos -> data/raw"
    assert lines[1] == f"preprocess: 1 copy in the same class: train/Cat/{cats[0].name} = train/Cat/copy.png"
    shutil.copy(cats[1], tmp_path / "photos/test/Dog/copy.png")
    stage("download").main(tmp_path)
    with pytest.raises(
        UserError, match=f"in two splits; delete one of each pair: train/Cat/{cats[1].name} = test/Dog/c"
    ):
        stage("preprocess").main(tmp_path)


def test_a_single_class_is_an_error_of_download(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", per_class=1, seed=1)
    for folder in sorted((tmp_path / "photos").iterdir())[1:]:
        shutil.rmtree(folder)
    write_params(tmp_path, download={"dataset": "folder", "folder": "photos"})
    command = [sys.executable, str(ROOT / "stages/download.py")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "download: photos: a single class found (Airplane), at least two needed\n"
    assert not (tmp_path / "data").exists()


def test_an_unreadable_picture_is_an_error_of_download_if_strict(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", per_class=1, seed=1)
    (tmp_path / "photos/Cat/broken.png").write_bytes(b"text")
    write_params(tmp_path, download={"dataset": "folder", "folder": "photos", "strict": True})
    with pytest.raises(UserError, match=r"^photos/Cat/broken.png: not readable: .*download.strict: false skips"):
        stage("download").main(tmp_path)
    assert not (tmp_path / "data").exists()


def test_preprocess_writes_arrays_and_statistics(project: Path) -> None:
    prepared = project / "data/prepared"
    shapes = {path.name: np.load(path, allow_pickle=False).shape for path in prepared.glob("*.npy")}
    assert shapes["train_images.npy"] == (180, 3, 32, 32)
    assert shapes["validation_labels.npy"] == (20,)
    assert shapes["test_images.npy"] == (40, 3, 32, 32)
    statistics = json.loads((prepared / "statistics.json").read_text())
    assert statistics["images"] == {"train": 180, "validation": 20, "test": 40}
    assert statistics["images_per_class"]["validation"]["cat"] == 2
    assert statistics["classes"] == list(cifar10.CLASSES)


def test_a_stage_that_cannot_write_ends_with_one_line(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_params(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("model", "prepared"):
        (tmp_path / "data" / name).symlink_to(project / "data" / name)
    (tmp_path / "data/predictions").write_text("a file, where a folder is needed")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as raised:
        run(stage("predict").main, "predict")
    table = tmp_path / "data/predictions/predictions.csv"
    assert raised.value.code == f"predict: {table}: cannot be used (Not a directory)"


def test_train_writes_weights_config_and_history(project: Path) -> None:
    config = json.loads((project / "data/model/model.json").read_text())
    assert config["architecture"]["channels"] == [8, 16]
    assert config["classes"][3] == "cat"
    assert 0.1 < config["temperature"] < 10
    assert {"mlflow_run", "train_data", "torch", "cpu", "precision", "seconds"} <= set(config["provenance"])
    history = read_history(project / "data/model/history.csv")
    assert [record.epoch for record in history] == [1, 2, 3]
    run = connect(project).get_run(config["provenance"]["mlflow_run"])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "3"
    assert run.data.metrics["train_loss"] == pytest.approx(history[-1].train_loss, abs=1e-6)
    assert run.data.tags["model"] == hashlib.md5((project / "data/model/model.safetensors").read_bytes()).hexdigest()


def test_training_again_writes_the_same_bytes(project: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepared").symlink_to(project / "data/prepared")
    write_params(tmp_path)
    stage("train").main(tmp_path)
    first, again = (root / "data/model/model.safetensors" for root in (project, tmp_path))
    assert first.read_bytes() == again.read_bytes()


def test_a_value_that_changes_during_a_training_is_an_error_and_the_restored_one_continues_it(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepared").symlink_to(project / "data/prepared")
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    write_params(tmp_path)
    train = stage("train")
    follow = train.follow_training

    def edit_then_follow(*arguments: object) -> None:
        write_params(tmp_path, train={"epochs": 7})
        follow(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train, "follow_training", edit_then_follow)
        with pytest.raises(UserError, match=r"^params.yaml: train.epochs changed from 3 to 7 while this stage ran"):
            train.main(tmp_path)
    assert not (tmp_path / "data/model").exists()
    write_params(tmp_path)
    train.main(tmp_path)
    assert "resumed after epoch 3 from" in capsys.readouterr().out
    first, again = (root / "data/model/model.safetensors" for root in (project, tmp_path))
    assert first.read_bytes() == again.read_bytes()


def test_train_starts_from_another_model_and_records_its_weights(project: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepared").symlink_to(project / "data/prepared")
    source = project / "data/model"
    write_params(tmp_path, train={"init": str(source), "epochs": 1, "low_resolution_share": 0})
    stage("train").main(tmp_path)
    provenance = json.loads((tmp_path / "data/model/model.json").read_text())["provenance"]
    assert provenance["init"] == str(source)
    assert provenance["init_weights"] == hashlib.md5((source / "model.safetensors").read_bytes()).hexdigest()
    assert "init" not in json.loads((source / "model.json").read_text())["provenance"]
    started, random = (read_history(root / "data/model/history.csv")[0] for root in (tmp_path, project))
    assert started.train_loss < random.train_loss


def test_a_training_does_not_continue_from_the_state_of_one_with_other_initial_weights(
    project: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepared").symlink_to(project / "data/prepared")
    shutil.copytree(project / "data/model", tmp_path / "source")
    write_params(tmp_path, train={"init": "source"}, checkpoint={"minutes": 1e-9})
    folders, train = [], stage("train")
    for scale in (1, 2):
        model, config = load_model(tmp_path / "source", select_device("cpu"))
        with torch.no_grad():
            next(model.layers.parameters()).mul_(scale)
        save_model(tmp_path / "source", model, config)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                train, "training_folder", lambda *parts: folders.append(training_folder(*parts)) or folders[-1]
            )
            train.main(tmp_path)
    assert folders[0] != folders[1]


def test_evaluate_evaluates_on_the_test_images_and_logs_to_the_training_run(project: Path) -> None:
    evaluation = project / "data/evaluation"
    metrics = json.loads((evaluation / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.5  # the pattern is learnable; chance is 0.1
    assert metrics["parameters"] > 1000
    assert {"accuracy_tta", "log_loss", "multiply_adds", "images_per_second"} <= set(metrics)
    assert [row["class"] for row in rows(evaluation / "class_scores.csv")] == list(cifar10.CLASSES)
    corrupted = rows(evaluation / "corruptions.csv")
    mean = np.mean([float(row[f"severity_{severity}"]) for row in corrupted for severity in range(1, 6)])
    assert mean == pytest.approx(metrics["mean_corruption_accuracy"], abs=1e-6)
    assert 0.1 < metrics["mean_corruption_accuracy"] < 1
    assert (
        metrics["corruption_baseline_accuracy"] == metrics["accuracy"]
    )  # a class has fewer than 100 images, so all are corrupted
    assert metrics["accuracy_interval"][0] < metrics["accuracy"] < metrics["accuracy_interval"][1]
    assert metrics["model_bytes"] == (project / "data/model/model.safetensors").stat().st_size
    table = rows(evaluation / "predictions.csv")
    num_correct = sum(row["actual"] == row["predicted"] for row in table)
    assert num_correct / len(table) == metrics["accuracy"]
    logits = np.load(evaluation / "logits.npy", allow_pickle=False)
    assert logits.shape == (2, 40, 10)
    assert [cifar10.CLASSES[label] for label in logits[0].argmax(1)] == [row["predicted"] for row in table]
    run_id = json.loads((project / "data/model/model.json").read_text())["provenance"]["mlflow_run"]
    client = connect(project)
    assert client.get_run(run_id).data.metrics["test_accuracy"] == metrics["accuracy"]
    figures = {Path(artifact.path).name for artifact in client.list_artifacts(run_id, "evaluation")}
    assert figures == {path.name for path in evaluation.glob("figures/*.png")} != set()


def test_evaluate_fits_the_familiarity_threshold_on_the_held_out_images(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert json.loads((project / "data/evaluation/metrics.json").read_text())["familiarity_threshold"] is None, (
        "too few"
    )
    for folder in ("prepared", "model"):
        shutil.copytree(project / "data" / folder, tmp_path / "data" / folder)
    write_params(tmp_path, tracking={"enabled": False}, evaluate={"corruptions": False})
    monkeypatch.setattr("cifar_resnet.inference.familiarity.MIN_IMAGES", 20)
    stage("evaluate").main(tmp_path)
    pixels = np.load(project / "data/prepared/validation_images.npy", allow_pickle=False)
    target = select_device()
    model, _ = load_model(project / "data/model", target)
    logits = predict_logits(model, pixels, batch_size=20, precision=select_dtype("auto", target)[0], augmented=True)
    metrics = json.loads((tmp_path / "data/evaluation/metrics.json").read_text())
    assert metrics["familiarity_threshold"] == pytest.approx(np.quantile(familiarity(logits.numpy()), 0.05))


def test_docs_list_exactly_the_metrics_and_columns_that_evaluate_writes(project: Path) -> None:
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    metrics, tables = page.partition("## What each metric means")[2].split("### Tables")
    documented = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", metrics, re.MULTILINE)))
    evaluation = project / "data/evaluation"
    assert sorted(documented) == sorted(json.loads((evaluation / "metrics.json").read_text()))
    columns = dict(re.findall(r"^\| `([\w.]+)` \|.*?\|(.*)\|$", tables, re.MULTILINE))
    assert set(columns) == {path.name for path in evaluation.glob("*.csv")}
    for name, cell in columns.items():
        assert re.findall(r"`(\w+)`", cell) == list(rows(evaluation / name)[0]), name


def copy_results(project: Path, root: Path) -> Path:
    for name in ("prepared", "model", "evaluation"):
        shutil.copytree(project / "data" / name, root / "data" / name)
    write_params(root, tracking={"enabled": False}, evaluate={"corruptions": False})
    return root


def test_evaluate_refuses_test_images_of_other_classes(project: Path, tmp_path: Path) -> None:
    statistics = copy_results(project, tmp_path) / "data/prepared/statistics.json"
    values = json.loads(statistics.read_text())
    write_json(statistics, values | {"classes": ["zebra", *values["classes"][1:]]})
    with pytest.raises(UserError, match=r"data/model knows the classes airplane, .* data/prepared has zebra, .*train"):
        stage("evaluate").main(tmp_path)


@pytest.mark.parametrize("fault", ["no history", "full disk"])
def test_an_evaluation_that_fails_leaves_metrics_and_figures_as_they_were(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    evaluation = copy_results(project, tmp_path) / "data/evaluation"
    kept = [evaluation / "metrics.json", *evaluation.glob("figures/*.png")]
    before = [path.read_bytes() for path in kept]
    if fault == "no history":
        (tmp_path / "data/model/history.csv").unlink()
        with pytest.raises(UserError, match=r"history.csv: not found; run `dvc repro train`"):
            stage("evaluate").main(tmp_path)
    else:

        def save(_: object, path: Path, **__: object) -> None:
            path.write_bytes(b"the first bytes")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("matplotlib.figure.Figure.savefig", save)
        with pytest.raises(OSError, match="No space left"):
            stage("evaluate").main(tmp_path)
    assert [path.read_bytes() for path in kept] == before


def test_register_and_compare_refuse_an_evaluation_of_other_test_images(project: Path, tmp_path: Path) -> None:
    images = copy_results(project, tmp_path) / "data/prepared/test_images.npy"
    write_array(images, np.load(images)[::-1])
    with pytest.raises(UserError, match="data/evaluation is of other test images than those in data/prepared; run"):
        stage("register").main(tmp_path)
    with pytest.raises(UserError, match=r"workspace: .*metrics.json is of other test images than .*run `dvc repro ev"):
        read_result(tmp_path, "workspace")
    labels = tmp_path / "data/prepared/test_labels.npy"
    write_array(labels, np.load(labels)[:-1])
    with pytest.raises(UserError, match="of other test images"):
        read_result(tmp_path, "workspace")


def test_labels_that_do_not_fit_the_images_are_an_error_of_training(project: Path, tmp_path: Path) -> None:
    labels = copy_results(project, tmp_path) / "data/prepared/train_labels.npy"
    write_array(labels, np.load(labels)[:-1])
    with pytest.raises(UserError, match=r"train_images.npy: uint8 .* with labels .* found, .* run `dvc repro prepro"):
        stage("train").main(tmp_path)


def test_evaluate_uses_the_models_temperatures_and_measures_corruptions_only_if_enabled(
    project: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepared").symlink_to(project / "data/prepared")
    shutil.copytree(project / "data/model", tmp_path / "data/model")
    config = tmp_path / "data/model/model.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"temperature": 2.0, "temperature_tta": 3.0}))
    write_params(tmp_path, evaluate={"corruptions": False})
    stage("evaluate").main(tmp_path)
    before, after = (json.loads((root / "data/evaluation/metrics.json").read_text()) for root in (project, tmp_path))
    for name in ("log_loss", "expected_calibration_error"):
        assert before[f"{name}_uncalibrated"] == after[f"{name}_uncalibrated"] != after[name] != before[name]
        assert after[f"{name}_tta"] != before[f"{name}_tta"]
    assert after["accuracy"] == before["accuracy"]
    assert "mean_corruption_accuracy" not in after
    assert (tmp_path / "data/evaluation/figures/corruptions.png").stat().st_size > 1000


def test_the_first_version_becomes_champion_and_predicts_raw_images(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decision = json.loads((project / "data/registry/decision.json").read_text())
    assert (decision["version"], decision["champion"], decision["reason"]) == (1, True, "there was no champion")
    client = connect(project)
    version = client.get_model_version_by_alias("cifar10-resnet", "champion")
    metrics = json.loads((project / "data/evaluation/metrics.json").read_text())
    assert float(version.tags["accuracy"]) == metrics["accuracy"]
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    pixels = np.load(project / "data/prepared/test_images.npy", allow_pickle=False)
    expected = [row["class_name"] for row in rows(project / "data/predictions/predictions.csv")]
    for uses_int8, least_agreement in ((False, 1), (True, MIN_AGREEMENT)):  # torch gives the same classes as `predict`
        monkeypatch.setattr(backend, "is_fast", lambda *_, fast=uses_int8: fast)
        served = mlflow.pyfunc.load_model("models:/cifar10-resnet@champion")
        assert served.metadata.signature is not None
        predicted = [prediction["class_name"] for prediction in served.predict(pixels.transpose(0, 2, 3, 1))]
        assert np.mean([name == other for name, other in zip(predicted, expected, strict=True)]) >= least_agreement


def test_registering_the_same_model_again_adds_no_version(project: Path) -> None:
    stage("register").main(project)
    decision = json.loads((project / "data/registry/decision.json").read_text())
    assert (decision["version"], decision["champion"], decision["reason"]) == (1, True, "it is already the champion")
    assert len(connect(project).search_model_versions("name='cifar10-resnet'")) == 1


def test_the_model_card_is_written_and_is_the_description_of_the_version(project: Path) -> None:
    card = (project / "data/registry/model-card.md").read_text(encoding="utf-8")
    folders = (project / folder for folder in ("data/prepared", "data/model", "data/evaluation"))
    assert card == read_card("cifar10-resnet", *folders, load_params(project / "params.yaml").train)
    client = connect(project)
    version = client.get_model_version("cifar10-resnet", "1")
    assert version.description == card
    assert set(version.tags) <= {*READABLE_TAGS, "evidence", "decision"}
    client.update_model_version("cifar10-resnet", "1", description="")
    stage("register").main(project)
    assert client.get_model_version("cifar10-resnet", "1").description == card
    client.update_model_version("cifar10-resnet", "1", description="my notes")
    stage("register").main(project)
    assert client.get_model_version("cifar10-resnet", "1").description == "my notes"
    client.update_model_version("cifar10-resnet", "1", description=card)


def test_register_adds_a_missing_correct_mask_to_a_version(project: Path) -> None:
    client = connect(project)
    before = read_evidence(client.get_model_version("cifar10-resnet", "1"))
    mask = before.pop("test_correct")
    client.set_model_version_tag("cifar10-resnet", "1", "evidence", pack_evidence(before)["evidence"])
    stage("register").main(project)
    assert read_evidence(client.get_model_version("cifar10-resnet", "1"))["test_correct"] == mask
    metrics = json.loads((project / "data/evaluation/metrics.json").read_text())
    assert decode_mask(mask).mean() == metrics["accuracy"]


def test_an_evaluation_of_another_training_is_not_registered(project: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(project, tmp_path / "project"))
    metrics = json.loads((root / "data/evaluation/metrics.json").read_text())
    write_json(root / "data/evaluation/metrics.json", metrics | {"mlflow_run": "another"})
    with pytest.raises(UserError, match="data/evaluation is of another training than data/model; run `dvc repro eval"):
        stage("register").main(root)
    assert len(connect(project).search_model_versions("name='cifar10-resnet'")) == 1


def test_predict_writes_a_row_for_every_image(project: Path) -> None:
    table = rows(project / "data/predictions/predictions.csv")
    assert list(table[0]) == ["index", "file", "label", "class_name", "confidence"]
    assert [row["index"] for row in table] == [str(index) for index in range(40)]
    assert all(cifar10.CLASSES[int(row["label"])] == row["class_name"] for row in table)
    assert all(0.1 <= float(row["confidence"]) <= 1 for row in table)
    submission = rows(project / "data/predictions/submission.csv")
    assert [(row["ID"], row["Labels"]) for row in submission] == [(row["index"], row["label"]) for row in table]


def test_predict_reads_the_input_of_params(project: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/model").symlink_to(project / "data/model")
    np.savez(tmp_path / "input.npz", tiny_images(1, seed=9).pixels)
    write_params(tmp_path, predict={"input": "input.npz"})
    stage("predict").main(tmp_path)
    assert len(rows(tmp_path / "data/predictions/predictions.csv")) == 10


def test_predict_fails_on_a_bad_image_only_if_strict(project: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/model").symlink_to(project / "data/model")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (50, 50)).save(tmp_path / "photos/good.png")
    (tmp_path / "photos/bad.png").write_bytes(b"not an image")
    write_params(tmp_path, predict={"input": "photos"})
    with pytest.raises(UserError, match=r"photos/bad.png: not readable"):
        stage("predict").main(tmp_path)
    assert not (tmp_path / "data/predictions").exists()
    write_params(tmp_path, predict={"input": "photos", "strict": False})
    stage("predict").main(tmp_path)
    assert [row["file"] for row in rows(tmp_path / "data/predictions/predictions.csv")] == ["photos/good.png"]


def test_a_user_error_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    write_params(tmp_path, model={"kernels": [3, 4]})
    command = [sys.executable, str(ROOT / "stages/train.py")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "train: params.yaml: model.kernels is [3, 4]: only odd kernels keep the size\n"


def test_sigterm_ends_training_with_a_saved_state_a_killed_run_and_no_model(project: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepared").symlink_to(project / "data/prepared")
    write_params(tmp_path, train={"epochs": 100_000})
    command = [sys.executable, str(ROOT / "stages/train.py")]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "epoch" not in (line := process.stderr.readline()):
            assert line, "train ended before its first epoch"
        process.send_signal(signal.SIGTERM)
        message = process.stderr.read()
    assert process.returncode == 1
    assert re.search(r"train: interrupted; the state after epoch \d+.* is saved; run the same command again", message)
    assert not (tmp_path / "data/model").exists()
    client = connect(tmp_path)
    assert [run.info.status for run in client.search_runs([experiment_id(client)])] == ["KILLED"]


def test_the_error_for_a_missing_input_names_the_command_that_makes_it(tmp_path: Path) -> None:
    write_params(tmp_path)
    with pytest.raises(UserError, match=r"data_batch_1\.bin: missing; run `dvc repro download`"):
        stage("preprocess").main(tmp_path)
    with pytest.raises(UserError, match=r"train_images.npy: not a readable .npy array .* run `dvc repro preprocess`"):
        stage("train").main(tmp_path)


def test_a_model_over_the_limit_is_an_error_before_training(project: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepared").symlink_to(project / "data/prepared")
    write_params(tmp_path, model={"max_parameters": 100})
    with pytest.raises(UserError, match=r"parameters, model.max_parameters allows 100"):
        stage("train").main(tmp_path)
    assert load_params(tmp_path / "params.yaml").model.max_parameters == 100
    assert not (tmp_path / "mlflow.db").exists()


def test_without_tracking_every_stage_finishes(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepared").symlink_to(project / "data/prepared")
    write_params(tmp_path, train={"epochs": 1}, evaluate={"corruptions": False}, tracking={"enabled": False})
    for name in ("train", "evaluate", "register"):
        stage(name).main(tmp_path)
    assert not list(tmp_path.glob("ml*"))
    decision = json.loads((tmp_path / "data/registry/decision.json").read_text())
    reason = "tracking.enabled is false in params.yaml, and the registry belongs to MLflow"
    assert decision == {"champion": False, "reason": reason}
    assert (tmp_path / "data/registry/model-card.md").stat().st_size > 1000
    assert f"register: nothing is registered: {reason}" in capsys.readouterr().out


def test_without_mlflows_server_train_is_an_error_and_evaluate_writes_its_files(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")  # no server listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepared").symlink_to(project / "data/prepared")
    write_params(tmp_path, evaluate={"corruptions": False})
    with pytest.raises(UserError, match=r"MLflow at http://127.0.0.1:9 cannot be used .* start it or unset") as error:
        stage("train").main(tmp_path)
    assert "secret" not in str(error.value)
    assert not (tmp_path / "data/model").exists()

    shutil.copytree(project / "data/model", tmp_path / "data/model")
    stage("evaluate").main(tmp_path)
    assert "; then `make mlflow-backfill` adds these results" in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "data/evaluation").iterdir()}
    assert written == {path.name for path in (project / "data/evaluation").iterdir()}
    with pytest.raises(UserError, match=r"MLflow at http://127.0.0.1:9 cannot be used"):
        stage("register").main(tmp_path)
    assert not (tmp_path / "data/registry").exists()


def test_the_card_has_the_values_of_the_training_not_those_edited_later(project: Path, tmp_path: Path) -> None:
    root = copy_results(project, tmp_path)
    output = {"path": "data/model/model.json", "md5": file_hash(root / "data/model/model.json")}
    train = {"params": {"params.yaml": {"train": tiny_values()["train"]}}, "outs": [output]}
    (root / "dvc.lock").write_text(dump_yaml({"stages": {"train": train}}))
    write_params(root, train={"seed": 5}, tracking={"enabled": False})
    stage("register").main(root)
    assert "One training with seed 0." in (root / "data/registry/model-card.md").read_text()
    (root / "data/model/model.json").write_text((root / "data/model/model.json").read_text() + "\n")
    stage("register").main(root)  # DVC recorded another training
    assert "One training with seed 5." in (root / "data/registry/model-card.md").read_text()


def test_a_version_names_the_commit_and_the_experiment_that_trained_it(project: Path, tmp_path: Path) -> None:
    config = copy_results(project, tmp_path) / "data/model/model.json"
    write_params(tmp_path)
    values = json.loads(config.read_text())
    values["provenance"] |= {"git_commit": "a" * 40, "dvc_experiment": "wide"}
    write_json(config, values)
    stage("register").main(tmp_path)
    tags = connect(tmp_path).get_model_version("cifar10-resnet", "1").tags
    assert (tags["git_commit"], tags["dvc_experiment"]) == ("a" * 40, "wide")
