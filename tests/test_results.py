"""docs/results.md and docs/research.md against the committed files that their figures come from, and docs/published.py.

If a figure has changed, the message of a failed test shows the lines that belong into the page.
"""

import csv
import importlib.util
import json
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType

import numpy as np
import pytest
from conftest import ROOT, rows

from cifar_resnet.data.cifar10 import CLASSES
from cifar_resnet.errors import UserError
from cifar_resnet.evaluation.significance import mcnemar_test

DOCS, EVALUATION = ROOT / "docs", ROOT / "data/evaluation"
RESULTS, RESEARCH = ((DOCS / name).read_text(encoding="utf-8") for name in ("results.md", "research.md"))
TRAININGS = rows(DOCS / "results/trainings.csv")
PRESETS = {  # the name in the tables, and its trainings
    "default": ("default", "13", "AVX512-bf16"),
    "default, on AVX2": ("default", "13", "AVX2"),
    "wide": ("wide", "26", "AVX512-bf16"),
    "small": ("small", "120", "AVX512-bf16"),
    "record": ("record", "50", "AVX512-bf16"),
}


def script(name: str) -> ModuleType:
    """A script of docs, which is not part of the package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def percent(value: float | str, decimals: int = 2) -> str:
    return f"{100 * float(value):.{decimals}f} %"


def interval(low: float | str, high: float | str, decimals: int = 2) -> str:
    return f"{100 * float(low):.{decimals}f} to {100 * float(high):.{decimals}f} %"


def with_spread(values: list[float]) -> str:
    spread = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return percent(mean(values)) + spread


def assert_rows(page: str, expected: list[list[str]]) -> None:
    """The table rows stand one below the other in the page."""
    text = "\n".join(f"| {' | '.join(row)} |".replace("|  |", "| |") for row in expected)
    assert text in page, f"expected these lines:\n{text}"


def trainings_of(preset: str) -> list[dict[str, str]]:
    return [row for row in TRAININGS if (row["recipe"], row["epochs"], row["machine"]) == PRESETS[preset]]


def test_the_metrics_of_the_default_are_those_of_the_committed_evaluation() -> None:
    metrics = json.loads((EVALUATION / "metrics.json").read_text())
    assert_rows(
        RESULTS,
        [
            ["accuracy", *(percent(metrics[f"accuracy{end}"]) for end in ("", "_tta"))],
            ["95 % interval of the accuracy", *(interval(*metrics[f"accuracy_interval{end}"]) for end in ("", "_tta"))],
            ["log-loss", *(f"{metrics[f'log_loss{end}']:.3f}" for end in ("", "_tta"))],
            ["Brier score", *(f"{metrics[f'brier_score{end}']:.3f}" for end in ("", "_tta"))],
            [
                "expected calibration error",
                *(percent(metrics[f"expected_calibration_error{end}"], 1) for end in ("", "_tta")),
            ],
            [
                "expected calibration error at temperature 1",
                percent(metrics["expected_calibration_error_uncalibrated"], 1),
                "",
            ],
            ["accuracy on the most confident 90 %", percent(metrics["selective_accuracy_90"], 1), ""],
            ["accuracy under corruption, 1,000 images", percent(metrics["mean_corruption_accuracy"], 1), ""],
            ["accuracy on these images without corruption", percent(metrics["corruption_baseline_accuracy"], 1), ""],
        ],
    )


def test_the_tables_of_the_default_are_those_of_the_committed_evaluation() -> None:
    assert_rows(
        RESULTS,
        [
            [
                row["class"],
                percent(row["recall"], 1),
                interval(row["recall_low"], row["recall_high"], 1),
                percent(row["precision"], 1),
            ]
            for row in rows(EVALUATION / "class_scores.csv")
        ],
    )
    columns = ("mean", "severity_1", "severity_3", "severity_5")
    assert_rows(
        RESULTS,
        [
            [row["corruption"], *(percent(row[column], 1) for column in columns)]
            for row in rows(EVALUATION / "corruptions.csv")
        ],
    )


def test_predictions_between_70_and_90_percent_are_overconfident_as_the_page_says() -> None:
    bins = [(float(row["confidence"]), float(row["accuracy"])) for row in rows(EVALUATION / "reliability.csv")]
    assert all(accuracy < confidence for confidence, accuracy in bins if 0.7 <= confidence <= 0.9)


def test_the_page_names_the_commit_that_trained_the_committed_default() -> None:
    commit = json.loads((ROOT / "data/model/model.json").read_text())["provenance"]["git_commit"]
    assert f"the weights that were trained with the code of commit {commit[:7]}." in RESULTS


@pytest.mark.parametrize("preset", PRESETS)
def test_the_tables_of_presets_are_means_over_the_trainings(preset: str) -> None:
    trainings = trainings_of(preset)
    accuracies = ([float(row[column]) for row in trainings] for column in ("test_accuracy", "test_accuracy_tta"))
    timed = [row for row in trainings if row["minutes"]]
    minutes = mean(float(row["minutes"]) for row in timed)
    count, parameters = str(len(trainings)), f"{int(trainings[0]['parameters']):,}"
    cells = [*(with_spread(values) for values in accuracies), count, parameters, f"{minutes:.0f} min"]
    name = f"[{preset}](../presets/{preset}.yaml)" if preset in ("wide", "small", "record") else preset
    assert_rows(RESULTS, [[name, *cells]])
    cost = next(line for line in RESULTS.splitlines() if line.startswith(f"| {preset} |") and line.endswith("GB |"))
    assert cost.split(" | ")[2] == f"{mean(script('figures').pf_equivalents(row) for row in timed):.2f}"


def test_the_quoted_networks_have_the_figures_of_the_comparison_with_published_ones() -> None:
    table = rows(DOCS / "results/published.csv")
    quoted = [row for row in table if f"| `{row['network']}` |" in RESULTS]
    assert len(quoted) >= 5
    for row in quoted:
        low, high = (f"{100 * float(row[f'default_{end}']):+.2f}" for end in ("low", "high"))
        difference, p_value = f"{100 * float(row['default_difference']):+.2f} points", row["default_p_value"]
        cells = [f"`{row['network']}`", percent(row["accuracy"]), difference, f"{low} to {high}", p_value]
        assert_rows(RESULTS, [cells])
    default = json.loads((EVALUATION / "metrics.json").read_text())["accuracy"]
    assert [float(row["accuracy"]) for row in table if row["network"] == "default"] == [default]
    assert sum(row["published"] == "True" for row in table) == 30


def test_the_table_of_trainings_has_the_means_over_the_seeds() -> None:
    figures = script("figures")
    for row in TRAININGS:
        group = [row[key] for key in ("recipe", "epochs", "machine")]
        seeds = [other for other in TRAININGS if [other[key] for key in ("recipe", "epochs", "machine")] == group]
        if f"| {row['commit']} |" not in RESEARCH:
            continue
        name = row["recipe"] if len(seeds) == 1 else f"{row['recipe']}, n = {len(seeds)}"
        cost = f"{mean(figures.pf_equivalents(seed) for seed in seeds):.2f}"
        accuracies = [percent(mean(float(seed[f"test_accuracy{end}"]) for seed in seeds)) for end in ("", "_tta")]
        assert_rows(RESEARCH, [[name, row["epochs"], cost, *accuracies, row["commit"]]])


def test_the_table_of_ablations_has_the_means_over_the_seeds() -> None:
    table = rows(DOCS / "research/ablations.csv")
    seeds = {row["changed"]: [other for other in table if other["changed"] == row["changed"]] for row in table}
    baseline = mean(float(row["validation_accuracy"]) for row in seeds["nothing"])
    for changed, trainings in seeds.items():
        accuracies = [float(row["validation_accuracy"]) for row in trainings]
        difference = f"{100 * (mean(accuracies) - baseline):+.2f}" if changed != "nothing" else ""
        loss = mean(float(row["validation_loss"]) for row in trainings)
        train = percent(mean(float(row["train_accuracy"]) for row in trainings), 1)
        cells = [changed, str(len(trainings)), with_spread(accuracies), difference, f"{loss:.3f}", train]
        assert_rows(RESEARCH, [cells])


def test_published_networks_are_compared_image_by_image_with_every_own_network() -> None:
    random = np.random.default_rng(0)
    published = {"weak": random.random(500) < 0.8, "strong": random.random(500) < 0.95}
    own = {"default": random.random(500) < 0.9, "record": random.random(500) < 0.93}
    table = {row["network"]: row for row in script("published").compare_networks(published, own)}
    accuracies = [row["accuracy"] for row in table.values()]
    assert accuracies == sorted(accuracies, reverse=True)
    assert [name for name, row in table.items() if row["published"]] == ["strong", "weak"]
    for name, mask in own.items():
        assert table[name]["record_difference"] == ""
        expected = mcnemar_test(mask, published["strong"])
        assert table["strong"][f"{name}_difference"] == expected.difference
        assert table["strong"][f"{name}_low"] == expected.difference_low
        assert float(table["strong"][f"{name}_p_value"]) == pytest.approx(expected.p_value, rel=0.05)  # two digits


def test_predictions_are_compared_with_the_labels_of_the_test_images(tmp_path: Path) -> None:
    with (tmp_path / "predictions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("index", "actual", "predicted"), (0, CLASSES[3], CLASSES[5]), (1, *CLASSES[8:])])
    labels = script("published").read_labels(tmp_path / "predictions.csv")
    assert labels.tolist() == [3, 8]
    np.savez(tmp_path / "published.npz", good=np.array([3, 9], np.uint8))
    masks = script("published").read_published(tmp_path / "published.npz", labels)
    assert masks["good"].tolist() == [True, False]


def test_a_published_network_with_another_number_of_images_is_an_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "published.npz", short=np.zeros(3, np.uint8))
    with pytest.raises(UserError, match=r"published.npz: short \(3,\): each network needs one class for each of 2"):
        script("published").read_published(tmp_path / "published.npz", np.array([3, 8]))
    with pytest.raises(UserError, match=r"write NAME=FILE"):
        script("published").split_name("predictions.csv")
    with pytest.raises(UserError, match=r"missing; run `dvc checkout`"):
        script("published").read_labels(tmp_path / "absent.csv")
