import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_images

from cifar_resnet.cli import main as command
from cifar_resnet.data.dataset import write_array
from cifar_resnet.errors import UserError
from cifar_resnet.evaluation.compare import (
    CONFIG,
    IMAGES,
    LABELS,
    LOGITS,
    METRICS,
    RevisionResult,
    comparison_report,
    plot_differences,
    read_result,
)
from cifar_resnet.files import file_hash, read_json, write_json

CLASSES = ["cat", "dog", "owl"]
TRUE = np.array([0, 0, 0, 1, 1, 1])
FIRST = np.array([0, 0, 1, 1, 2, 2])  # three are correct
SECOND = np.array([0, 1, 0, 1, 1, 1])  # five are correct: one lost, three gained
PIXELS = tiny_images(1, seed=0).pixels[:6]


def make_probabilities(predicted: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    probabilities = np.full((len(predicted), 3), 0.05)
    probabilities[np.arange(len(predicted)), predicted] = 0.9 - 0.01 * np.arange(len(predicted))
    return probabilities


def make_result(name: str, predicted: np.ndarray) -> RevisionResult:  # type: ignore[type-arg]
    return RevisionResult(name, TRUE, predicted, make_probabilities(predicted).max(axis=1), CLASSES)


def write_outputs(root: Path, predicted: np.ndarray) -> None:  # type: ignore[type-arg]
    logits = np.log(make_probabilities(predicted))
    write_array(root / LOGITS, np.stack([logits, logits]))
    write_array(root / LABELS, TRUE)
    write_array(root / IMAGES, PIXELS)
    write_json(root / CONFIG, {"classes": CLASSES, "temperature": 2.0, "provenance": {"mlflow_run": "a"}})
    write_json(root / METRICS, {"mlflow_run": "a"})


def test_the_report_counts_gained_and_lost_images() -> None:
    lines = comparison_report(make_result("old", FIRST), make_result("new", SECOND)).splitlines()
    assert lines[0] == "old: 50.00%, new: 83.33% of 6 test images"
    # (3 - 1) / 8 = 1/4, its variance ((3 + 1 + 1) - 2 * 2 / 8) / 8 ** 2; at most 1 of 4 fair coins, both ways: 2 x 5/16
    assert lines[1] == (
        "difference +33.33 points (95 % interval -26.97 to +76.97), p = 0.62 on 6 images (McNemar's exact test)"
    )
    assert lines[2] == "correct: both 2, only old 1, only new 3, neither 0"
    assert [line.split() for line in lines[4:]] == [["cat", "1", "1", "+0.0"], ["dog", "2", "0", "+66.7"]]


def test_results_on_different_test_data_raise_an_error() -> None:
    other = RevisionResult("other", TRUE[::-1], FIRST, np.ones(6), CLASSES)
    with pytest.raises(UserError, match="old and other were evaluated on different test data"):
        comparison_report(make_result("old", FIRST), other)


def test_the_figure_shows_the_most_confident_mistakes_first(tmp_path: Path) -> None:
    write_outputs(tmp_path, FIRST)
    figure = plot_differences(make_result("workspace", FIRST), make_result("new", SECOND), tmp_path)
    assert [axes.get_title() for axes in figure.axes] == [
        *("lost:\ncat → dog", "gained:\ndog → cat", "gained:\nowl → dog", "gained:\nowl → dog")
    ]
    drawn = [axes.images[0].get_array().transpose(2, 0, 1) for axes in figure.axes]
    assert all(np.array_equal(image, PIXELS[row]) for image, row in zip(drawn, (1, 2, 4, 5), strict=True))
    assert figure.get_suptitle() == "Predicted class: workspace → new"
    same = plot_differences(make_result("a", FIRST), make_result("b", FIRST), tmp_path)
    assert "a and b classify the same images correctly" in same.texts[0].get_text()


def test_results_are_read_from_git_and_dvc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> None:
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "DVC_NO_ANALYTICS": "1"}
        subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, check=True)

    dvc = (sys.executable, "-m", "dvc")
    write_outputs(tmp_path, FIRST)
    run("git", "init", "--quiet")
    run(*dvc, "init", "--quiet")
    run(*dvc, "add", "--quiet", LOGITS, LABELS, IMAGES)
    run("git", "add", "--all")
    run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "--message", "first")
    write_outputs(tmp_path, SECOND)

    head = read_result(tmp_path, "HEAD")
    assert head.predicted.tolist() == FIRST.tolist()
    scaled = np.sqrt(make_probabilities(FIRST))  # the temperature is 2
    assert head.confidence == pytest.approx(scaled.max(axis=1) / scaled.sum(axis=1))
    monkeypatch.setattr(sys, "argv", ["cifar_resnet", "compare", "--output", str(tmp_path / "out.png")])
    assert command.main(tmp_path) == 0
    assert "correct: both 2, only HEAD 1, only workspace 3, neither 0" in capsys.readouterr().out
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert (head.images_md5, read_result(tmp_path, "workspace").images_md5) == (file_hash(tmp_path / IMAGES),) * 2
    with pytest.raises(UserError, match=r"nonsense: no such commit, branch, tag or experiment;"):
        read_result(tmp_path, "nonsense")
    (tmp_path / CONFIG).write_text(json.dumps({"classes": CLASSES}))
    (tmp_path / LOGITS).unlink()
    with pytest.raises(UserError, match=r"workspace: no data/evaluation/logits.npy .* run `make repro`"):
        read_result(tmp_path, "workspace")
    shutil.rmtree(tmp_path / ".dvc/cache")  # as in a clone
    with pytest.raises(UserError, match=r"HEAD: no data/evaluation/logits.npy \(neither in Git nor in DVC's cache\);"):
        read_result(tmp_path, "HEAD")


def test_the_pretrained_weights_are_compared_with_a_revision(
    project: Path,
    tmp_path: Path,
    shipped_pretrained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    accuracy = json.loads((shipped_pretrained / "metrics.json").read_text())["accuracy"]
    output = str(tmp_path / "out.png")
    for names in (("pretrained", "workspace"), ("workspace", "pretrained")):
        monkeypatch.setattr(sys, "argv", ["cifar_resnet", "compare", *names, "--output", output])
        assert command.main(project) == 0
        expected = f"{names[0]}: {accuracy:.2%}, {names[1]}: {accuracy:.2%} of 40 test images"
        assert capsys.readouterr().out.splitlines()[0] == expected
    message = r"pretrained and other know different classes \(airplane, automobile, bird and 7 more; cat, dog, owl\)"
    with pytest.raises(UserError, match=message) as raised:
        comparison_report(read_result(project, "pretrained"), make_result("other", FIRST))
    assert "\n" not in str(raised.value)


def test_results_on_other_test_images_with_the_same_labels_raise_an_error(project: Path, tmp_path: Path) -> None:
    for name in ("data/model", "data/evaluation", "data/prepared"):
        shutil.copytree(project / name, tmp_path / name)
    write_array(tmp_path / IMAGES, np.load(tmp_path / IMAGES)[::-1])
    write_json(tmp_path / METRICS, read_json(tmp_path / METRICS) | {"test_data": file_hash(tmp_path / IMAGES)})
    first, second = read_result(project, "workspace"), replace(read_result(tmp_path, "workspace"), revision="other")
    assert np.array_equal(first.labels, second.labels)
    with pytest.raises(UserError, match=r"workspace and other were .* the same data/prepared/test_images.npy$"):
        comparison_report(first, second)
    assert "difference" in comparison_report(first, replace(second, images_md5=""))


def test_the_figure_of_a_comparison_with_the_pretrained_weights_shows_the_images_of_the_other_revision(
    tmp_path: Path,
) -> None:
    write_outputs(tmp_path, SECOND)
    figure = plot_differences(make_result("pretrained", FIRST), make_result("workspace", SECOND), tmp_path)
    assert len(figure.axes) == 4


@pytest.mark.parametrize(
    ("file", "content"),
    [(CONFIG, "<<<<<<< HEAD\n"), (CONFIG, "[]"), (CONFIG, "{}"), (METRICS, "1"), (LOGITS, "no array"), (LABELS, "")],
)
def test_a_damaged_file_of_the_workspace_is_an_error_that_names_it(tmp_path: Path, file: str, content: str) -> None:
    write_outputs(tmp_path, FIRST)
    assert read_result(tmp_path, "workspace").correct.sum() == 3
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=rf"^workspace: {file} is damaged \(.+\); `dvc repro (evaluate|train)`"):
        read_result(tmp_path, "workspace")


def test_an_evaluation_of_another_training_is_not_compared(tmp_path: Path) -> None:
    """After `dvc repro train`, data/evaluation is of the network before."""
    write_outputs(tmp_path, FIRST)
    write_json(tmp_path / METRICS, {"mlflow_run": "b"})
    message = "^workspace: data/evaluation/metrics.json is of another training than data/model/model.json; run `dvc"
    with pytest.raises(UserError, match=message):
        read_result(tmp_path, "workspace")
