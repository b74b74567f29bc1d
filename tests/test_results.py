"""README, results.md, research.md and experiments.md against the committed figures; docs/published.py."""

import csv
import importlib.util
import json
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType

import numpy as np
import pytest
from conftest import ROOT, rows
from scipy.stats import spearmanr

from cifar_resnet.data.cifar10 import CLASSES
from cifar_resnet.errors import UserError
from cifar_resnet.evaluation.significance import mcnemar_test

DOCS, EVALUATION, PRETRAINED = ROOT / "docs", ROOT / "data/evaluation", ROOT / "src/cifar_resnet/pretrained"
RESULTS, RESEARCH, EXPERIMENTS = (
    (DOCS / name).read_text(encoding="utf-8") for name in ("results.md", "research.md", "experiments.md")
)
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAININGS = rows(DOCS / "results/trainings.csv")
PRESETS = {  # the name in the tables, and its trainings
    "default": ("default", "15", "AVX512-bf16"),
    "default, no noise": ("default, no noise", "13", "AVX512-bf16"),
    "default, no noise, AVX2": ("default, no noise", "13", "AVX2"),
    "wide": ("wide", "26", "AVX512-bf16"),
    "small": ("small", "120", "AVX512-bf16"),
    "robust": ("robust", "28", "AVX512-bf16"),
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


def percent(value: float, decimals: int = 2) -> str:
    return f"{100 * value:.{decimals}f} %"


def with_spread(values: list[float]) -> str:
    spread = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return percent(mean(values)) + spread


def assert_rows(page: str, expected: list[list[str]]) -> None:
    """The table rows stand one below the other in the page."""
    text = "\n".join(f"| {' | '.join(row)} |".replace("|  |", "| |") for row in expected)
    assert text in page, f"expected these lines:\n{text}"


def trainings_of(preset: str) -> list[dict[str, str]]:
    return [row for row in TRAININGS if (row["recipe"], row["epochs"], row["machine"]) == PRESETS[preset]]


def test_the_tables_of_the_default_are_those_of_the_committed_files() -> None:
    assert script("tables").update_page(RESULTS) == RESULTS, "run `python docs/tables.py`"


def test_a_row_that_the_page_has_not_exactly_once_is_an_error() -> None:
    replace_row = script("tables").replace_row
    page = "| cat | 1.0 % |\n| cat | 1.0 % | 2 |\n"
    assert replace_row(page, ["cat", "3.0 %"]) == "| cat | 3.0 % |\n| cat | 1.0 % | 2 |\n"
    for cells in (["dog", "3.0 %"], ["cat", "1", "2", "3"]):
        with pytest.raises(UserError, match=rf"0 rows of {len(cells)} cells"):
            replace_row(page, cells)


def test_the_page_orders_the_networks_of_this_project_among_the_published_ones() -> None:
    table = {row["network"]: float(row["accuracy"]) for row in rows(DOCS / "results/published.csv")}
    default = json.loads((EVALUATION / "metrics.json").read_text())["accuracy"]
    small, record = (mean(float(row["test_accuracy"]) for row in trainings_of(name)) for name in ("small", "record"))
    assert table["resnet_preact_bottleneck_164"] < default < table["wide_resnet_tf"]
    assert table["wide_resnet_tf"] < small < table["nas"]
    assert table["resnext_29_8x64d"] < record < table["pyramidnet_basic_110_270"]
    assert table.get("default", default) == default


def test_predictions_between_75_and_95_percent_are_overconfident_as_the_page_says() -> None:
    bins = [(float(row["confidence"]), float(row["accuracy"])) for row in rows(EVALUATION / "reliability.csv")]
    assert all(accuracy < confidence for confidence, accuracy in bins if 0.75 <= confidence <= 0.95)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_tables_of_presets_are_means_over_the_trainings(preset: str) -> None:
    trainings = trainings_of(preset)
    accuracies = ([float(row[column]) for row in trainings] for column in ("test_accuracy", "test_accuracy_tta"))
    timed = [row for row in trainings if row["minutes"]]
    minutes = mean(float(row["minutes"]) for row in timed)
    count, parameters = str(len(trainings)), f"{int(trainings[0]['parameters']):,}"
    cells = [*(with_spread(values) for values in accuracies), count, parameters, f"{minutes:.0f} min"]
    name = f"[{preset}](../presets/{preset}.yaml)" if preset in ("wide", "small", "robust", "record") else preset
    assert_rows(RESULTS, [[name, *cells]])
    cost = next(line for line in RESULTS.splitlines() if line.startswith(f"| {preset} |") and line.endswith("GB |"))
    assert cost.split(" | ")[2] == f"{mean(script('figures').pf_equivalents(row) for row in timed):.2f}"


def test_the_table_of_trainings_has_the_means_over_the_seeds() -> None:
    figures = script("figures")
    for row in TRAININGS:
        group = [row[key] for key in ("recipe", "epochs", "machine")]
        seeds = [other for other in TRAININGS if [other[key] for key in ("recipe", "epochs", "machine")] == group]
        if f"| {row['commit']} |" not in RESEARCH:
            continue
        name = row["recipe"] if len(seeds) == 1 else f"{row['recipe']}, n = {len(seeds)}"
        cost = f"{mean(figures.pf_equivalents(seed) for seed in seeds if seed['minutes']):.2f}"
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


def test_the_table_of_the_search_has_the_trials_that_were_trained_in_full() -> None:
    trials = {row["number"]: row for row in rows(DOCS / "search/trials.csv")}
    in_search, in_full = [], []
    for row in rows(DOCS / "search/full.csv"):
        trial = trials[row["trial"]]
        name = row["trial"] if row["trial"] != "0" else "0, default"
        channels = ", ".join(map(str, json.loads(trial["model.channels"])))
        in_search.append(float(trial["accuracy"]))
        in_full.append(float(row["validation_accuracy"]))
        cost = f"{int(trial['multiply_adds']) / 1e6:.0f} M"
        accuracies = [percent(in_search[-1]), percent(in_full[-1])]
        assert_rows(EXPERIMENTS, [[name, channels, f"{int(trial['parameters']):,}", cost, *accuracies, row["minutes"]]])
    correlation = spearmanr(in_search, in_full)
    assert f"rank correlation is {correlation.statistic:.2f} (Spearman, p = {correlation.pvalue:.3f})" in EXPERIMENTS


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
    name, own = script("published").read_own(f"record={tmp_path / 'predictions.csv'}")
    assert (name, own.tolist()) == ("record", [False, False])
    np.savez(tmp_path / "published.npz", good=np.array([3, 9], np.uint8))
    published = script("published").read_published(tmp_path / "published.npz", np.array([3, 8]))
    assert published["good"].tolist() == [True, False]


def test_predictions_that_cannot_be_compared_are_an_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "published.npz", short=np.zeros(3, np.uint8))
    with pytest.raises(UserError, match=r"published.npz: short \(3,\): each network needs one class for each of 2"):
        script("published").read_published(tmp_path / "published.npz", np.array([3, 8]))
    with pytest.raises(UserError, match=r"write NAME=FILE"):
        script("published").read_own("predictions.csv")
    with pytest.raises(UserError, match=r"absent.csv: missing; run `dvc checkout`"):
        script("published").read_own(f"default={tmp_path / 'absent.csv'}")


def test_readme_quotes_the_trainings_of_the_presets() -> None:
    lines = []
    for preset in ("default", "wide", "small", "robust", "record"):
        name = preset if preset == "default" else f"`{preset}`"
        trainings = trainings_of(preset)
        columns = ([float(row[column]) for row in trainings] for column in ("test_accuracy", "test_accuracy_tta"))
        minutes = mean(float(row["minutes"]) for row in trainings if row["minutes"])
        parameters = f"{float(trainings[0]['parameters']) / 1e6:.2f} M"
        lines.append([name, *map(with_spread, columns), str(len(trainings)), parameters, f"{minutes:.0f} min"])
    assert_rows(README, lines)


def test_readme_quotes_the_accuracy_under_corruption() -> None:
    metrics = json.loads((EVALUATION / "metrics.json").read_text())
    worst = {row["corruption"]: percent(float(row["severity_5"]), 1) for row in rows(EVALUATION / "corruptions.csv")}
    clean = percent(metrics["corruption_baseline_accuracy"], 1)
    sentence = (
        f"falls from {clean} to {worst['gaussian_noise']} with Gaussian noise, {worst['impulse_noise']} with impulse "
        f"noise and {worst['contrast']} with low contrast."
    )
    assert sentence in " ".join(README.split())
    shipped = json.loads((PRETRAINED / "metrics.json").read_text())
    default, robust = (percent(values["mean_corruption_accuracy"], 1) for values in (metrics, shipped))
    assert f"`robust` is right on {robust} of the images, the default on {default}" in " ".join(README.split())
