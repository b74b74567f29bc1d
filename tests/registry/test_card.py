import copy
import json
from typing import Any

from conftest import ROOT

from cifar_resnet.files import read_rows
from cifar_resnet.params.file import load_params
from cifar_resnet.params.schema import TrainParams
from cifar_resnet.registry.card import MAX_CHARACTERS, TABLES, fit_description, model_card, read_card

FOLDERS = (ROOT / "data/prepared", ROOT / "data/model", ROOT / "data/evaluation")
RECIPE = load_params(ROOT / "params.yaml").train
STATISTICS, CONFIG, METRICS = (
    json.loads((folder / name).read_text())
    for folder, name in zip(FOLDERS, ("statistics.json", "model.json", "metrics.json"), strict=True)
)
ROWS = {name: read_rows(FOLDERS[2] / f"{name}.csv") for name in TABLES}


def card(
    config: dict[str, Any] = CONFIG,
    statistics: dict[str, Any] = STATISTICS,
    metrics: dict[str, Any] = METRICS,
    tables: dict[str, Any] = ROWS,
    recipe: TrainParams = RECIPE,
) -> str:
    return model_card("cifar10-resnet", config, statistics, metrics, tables, recipe)


def test_the_committed_card_is_that_of_the_committed_results() -> None:
    committed = (ROOT / "data/registry/model-card.md").read_text(encoding="utf-8")
    assert committed == read_card("cifar10-resnet", *FOLDERS, RECIPE), "run `dvc repro register`"


def test_the_card_fits_in_a_description_of_mlflow_on_postgresql() -> None:
    assert len(card()) <= MAX_CHARACTERS


def test_the_limits_are_those_of_the_results() -> None:
    tables = {
        "class_scores": [row | {"recall": "0.71" if row["class"] == "ship" else "0.9"} for row in ROWS["class_scores"]],
        "confused_pairs": [{"true": "ship", "predicted": "airplane", "images": "123"}],
        "corruptions": [row | {"mean": "0.31" if row["corruption"] == "fog" else "0.8"} for row in ROWS["corruptions"]],
    }
    limits = card(tables=tables, recipe=RECIPE.model_copy(update={"seed": 7})).split("## Limits")[1]
    assert "The weakest class is ship, with 71.0 % of its images recognized." in limits
    assert "123 of 1,000 images of class ship become airplane" in limits
    assert "The weakest corruption is fog: 31.0 % instead of" in limits
    assert "One training with seed 7" in limits


def test_run_commit_and_speed_do_not_change_the_card() -> None:
    config, metrics = copy.deepcopy(CONFIG), dict(METRICS)
    config["provenance"] |= {"mlflow_run": "0" * 32, "git_commit": "0" * 40, "params": "0" * 32, "peak_memory_gb": 9.0}
    metrics |= {"mlflow_run": "0" * 32, "images_per_second": 1.0, "latency_milliseconds": 9.0, "model_bytes": 1}
    recipe = RECIPE.model_copy(update={"device": "cuda", "processes": 2})
    assert card(config=config, metrics=metrics, recipe=recipe) == card()


def test_without_corruptions_the_card_has_no_section_about_them() -> None:
    names = ("mean_corruption_accuracy", "corruption_baseline_accuracy")
    metrics = {name: value for name, value in METRICS.items() if name not in names}
    text = card(metrics=metrics, tables=ROWS | {"corruptions": []})
    assert "corrupt" not in text


def test_without_a_hold_out_the_card_says_that_nothing_is_calibrated() -> None:
    statistics = copy.deepcopy(STATISTICS)
    statistics["images"] |= {"train": 50_000, "validation": 0}
    text = card(config=CONFIG | {"temperature": 1.0}, statistics=statistics)
    assert "CIFAR-10 (50,000 train, 10,000 test images)" in text
    assert "No images were held out, so the probabilities are not calibrated." in text


def own_card(num_classes: int, train_counts: list[int]) -> str:
    """The card of a network for own pictures, trained from the pretrained weights."""
    classes = [f"class | {number}" for number in range(num_classes)]
    counts = {"train": dict(zip(classes, train_counts, strict=True)), "test": dict.fromkeys(classes, 20)}
    statistics = STATISTICS | {
        "source": "pictures/photos",
        "classes": classes,
        "images": {"train": sum(train_counts), "validation": 0, "test": 20 * num_classes},
        "images_per_class": counts,
    }
    config = CONFIG | {"classes": classes}
    config["provenance"] = CONFIG["provenance"] | {"init": "pretrained", "init_weights": "0123456789"}
    row = ROWS["class_scores"][0]
    tables = ROWS | {
        "class_scores": [row | {"class": name, "recall": str(1 - n / 1000)} for n, name in enumerate(classes)],
        "confused_pairs": [{"true": classes[0], "predicted": classes[1], "images": "3"}],
    }
    return card(config, statistics, METRICS | {"balanced_accuracy": 0.875}, tables)


def test_the_card_of_own_pictures_names_their_source_and_not_cifar_10() -> None:
    text = own_card(3, [5, 60, 60])
    assert "`photos` (125 train, 60 test images), 5 to 60 train images of a class." in text
    assert "The classes: class | 0, class | 1, class | 2." in text
    assert "one of its three classes" in text
    assert "CIFAR" not in text
    assert "| mean over the classes (balanced accuracy) | 87.50 % |" in text
    assert "It started from the weights pretrained (01234567)." in text
    assert r"| class \| 0 | 100.0 % |" in text


def test_a_card_of_many_classes_lists_the_weakest_ones_and_fits_in_a_description() -> None:
    text = own_card(200, [60] * 200)
    assert "`photos` (12,000 train, 4,000 test images), equally many of each class." in text
    assert "The classes: class | 0, class | 1, class | 2 and 197 more." in text
    assert "one of its 200 classes" in text
    assert "## Accuracy per class: the 20 weakest of 200" in text
    assert text.count("| class ") == 1 + 20
    assert r"| class \| 199 |" in text
    assert len(text) <= MAX_CHARACTERS


def test_the_description_of_a_card_with_long_class_names_ends_with_a_complete_line() -> None:
    text = own_card(20, [60] * 20).replace("class |", "a species with a long name |")
    assert len(text) > MAX_CHARACTERS
    description = fit_description(text)
    assert len(description) <= MAX_CHARACTERS
    lines = description.splitlines()
    assert lines[-1] == "... (model-card.md in data/registry is complete)"
    assert lines[:-2] == text.splitlines()[: len(lines) - 2]
    assert fit_description("short") == "short"
