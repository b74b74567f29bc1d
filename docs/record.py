"""Draw the figures of docs/record.md from the tables beside them: `python docs/record.py` -> docs/record/*.png."""

import csv
from itertools import groupby
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cifar_resnet.evaluation.metrics import wilson_interval
from cifar_resnet.evaluation.plots import BLUE, RED

FOLDER = Path(__file__).parent / "record"
NUM_VALIDATION = 10_000  # images
UNCHANGED = "nothing"  # in the column `changed` of ablations.csv


def read_table(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def plot_results() -> Figure:
    """Test error of every seed against the cost of its training, both axes logarithmic."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes, rows = figure.subplots(), read_table("results.csv")
    costs = [float(row["pf_equivalents"]) for row in rows]
    for column, colour, label in (
        ("test_accuracy", BLUE, "without test-time augmentation"),
        ("test_accuracy_tta", RED, "with test-time augmentation"),
    ):
        axes.plot(costs, [1 - float(row[column]) for row in rows], "o", alpha=0.7, color=colour, label=label)
    for recipe, seeds in groupby(rows, key=lambda row: row["recipe"]):
        first = next(seeds)
        point = float(first["pf_equivalents"]), 1 - float(first["test_accuracy"])
        axes.annotate(recipe, point, xytext=(4, 4), textcoords="offset points", fontsize=8, rotation=54)
    axes.axhline(0.04, color="grey", linestyle="--", linewidth=1, label="goal without test-time augmentation")
    axes.set(xscale="log", yscale="log", xlim=(0.4, 9), ylim=(0.034, 0.071), title="Test error against training cost")
    axes.set(xlabel="training cost (PF-equivalents)", ylabel="test error")
    label_ticks(axes, costs=[0.5, 1, 2, 4, 8], errors=[0.035, 0.04, 0.045, 0.05, 0.055, 0.06, 0.065])
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def label_ticks(axes: Axes, costs: list[float], errors: list[float]) -> None:
    axes.set_xticks(costs, [f"{cost:g}" for cost in costs])
    axes.set_yticks(errors, [f"{100 * error:g} %" for error in errors])
    axes.set_xticks([], minor=True)
    axes.set_yticks([], minor=True)


def plot_filter_lr() -> Figure:
    """Training loss by epoch and final validation accuracy at three learning rates."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2, width_ratios=(3, 2))
    for (rate, group), colour in zip(
        groupby(read_table("filter_lr.csv"), key=lambda row: row["filter_lr"]), ("grey", BLUE, RED), strict=True
    ):
        rows = list(group)
        epochs, losses = [int(row["epoch"]) for row in rows], [float(row["train_loss"]) for row in rows]
        loss_axes.plot(epochs, losses, marker="o", markersize=3, color=colour, label=f"filter_lr {rate}")
        accuracy = float(rows[-1]["validation_accuracy"])
        low, high = wilson_interval(round(accuracy * NUM_VALIDATION), NUM_VALIDATION)
        yerr = [[accuracy - low], [high - accuracy]]
        accuracy_axes.errorbar([rate], [accuracy], yerr, fmt="o", capsize=4, color=colour)
    loss_axes.set(xlabel="epoch", ylabel="cross-entropy (nats)", title="Training loss, augmented images")
    loss_axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracy_axes.set(xlabel="filter_lr", ylabel="accuracy, 95 % interval", title="10,000 validation images")
    accuracy_axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    for axes in (loss_axes, accuracy_axes):
        axes.grid(alpha=0.3)
    loss_axes.legend()
    return figure


def plot_ablations() -> Figure:
    """Validation accuracy after one change of the recipe: one point per seed, changes sorted by their mean."""
    groups = groupby(read_table("ablations.csv"), key=lambda row: row["changed"])
    seeds = {changed: [float(row["validation_accuracy"]) for row in group] for changed, group in groups}
    changes = sorted(seeds, key=lambda changed: mean(seeds[changed]))
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    for index, changed in enumerate(changes):
        colour = RED if changed == UNCHANGED else BLUE
        axes.plot(seeds[changed], [index] * len(seeds[changed]), "o", alpha=0.6, color=colour)
        axes.plot([mean(seeds[changed])], [index], "|", markersize=22, color=colour)
    axes.axvline(mean(seeds[UNCHANGED]), color="grey", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(changes)), changes)
    axes.set(xlabel="accuracy on 10,000 validation images", ylabel="change")
    axes.set_title("One change of the recipe: seeds and their mean")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    for name, plot in (("results", plot_results), ("filter_lr", plot_filter_lr), ("ablations", plot_ablations)):
        plot().savefig(FOLDER / f"{name}.png", dpi=110)
