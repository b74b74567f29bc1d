"""The figures of docs/record.md from the tables beside them: `python docs/record.py` -> docs/record/*.png."""

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
HELD_OUT = 10_000  # images
UNCHANGED = "nothing"


def read(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def cost() -> Figure:
    """Test error of every seed against what its training cost, both axes logarithmic."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes, rows = figure.subplots(), read("results.csv")
    costs = [float(row["pf_equivalents"]) for row in rows]
    for column, colour, label in (
        ("test_accuracy", BLUE, "plain"),
        ("test_accuracy_tta", RED, "with test-time augmentation"),
    ):
        axes.plot(costs, [1 - float(row[column]) for row in rows], "o", alpha=0.7, color=colour, label=label)
    for recipe, seeds in groupby(rows, key=lambda row: row["recipe"]):
        first = next(seeds)
        place = float(first["pf_equivalents"]), 1 - float(first["test_accuracy"])
        axes.annotate(recipe, place, xytext=(4, 4), textcoords="offset points", fontsize=8, rotation=54)
    axes.axhline(0.04, color="grey", linestyle="--", linewidth=1, label="the aim, plain")
    axes.set(xscale="log", yscale="log", xlim=(0.4, 9), ylim=(0.034, 0.071), title="What more arithmetic buys")
    axes.set(xlabel="PF-equivalents of a training", ylabel="test error")
    label_ticks(axes, costs=[0.5, 1, 2, 4, 8], errors=[0.035, 0.04, 0.045, 0.05, 0.055, 0.06, 0.065])
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def label_ticks(axes: Axes, costs: list[float], errors: list[float]) -> None:
    axes.set_xticks(costs, [f"{each:g}" for each in costs])
    axes.set_yticks(errors, [f"{100 * each:g} %" for each in errors])
    axes.set_xticks([], minor=True)
    axes.set_yticks([], minor=True)


def filter_lr() -> Figure:
    """How training images are learned at three learning rates, and what is known of others in the end."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for (rate, group), colour in zip(
        groupby(read("filter_lr.csv"), key=lambda row: row["filter_lr"]), ("grey", BLUE, RED), strict=True
    ):
        rows = list(group)
        epochs, losses = [int(row["epoch"]) for row in rows], [float(row["train_loss"]) for row in rows]
        left.plot(epochs, losses, marker="o", markersize=3, color=colour, label=f"filter_lr {rate}")
        accuracy = float(rows[-1]["validation_accuracy"])
        low, high = wilson_interval(round(accuracy * HELD_OUT), HELD_OUT)
        right.errorbar([rate], [accuracy], [[accuracy - low], [high - accuracy]], fmt="o", capsize=4, color=colour)
    left.set(xlabel="epoch", ylabel="cross-entropy (nats)", title="Training loss, augmented images")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(xlabel="filter_lr", ylabel="accuracy and 95 % interval", title="10,000 images held out")
    right.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend()
    return figure


def ablations() -> Figure:
    """What a training loses by one change: every seed a point, the changes in the order of their means."""
    groups = groupby(read("ablations.csv"), key=lambda row: row["changed"])
    seeds = {changed: [float(row["validation_accuracy"]) for row in group] for changed, group in groups}
    changes = sorted(seeds, key=lambda changed: mean(seeds[changed]))
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    for place, changed in enumerate(changes):
        colour = RED if changed == UNCHANGED else BLUE
        axes.plot(seeds[changed], [place] * len(seeds[changed]), "o", alpha=0.6, color=colour)
        axes.plot([mean(seeds[changed])], [place], "|", markersize=22, color=colour)
    axes.axvline(mean(seeds[UNCHANGED]), color="grey", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(changes)), changes)
    axes.set(xlabel="accuracy on 10,000 images held out", title="One thing changed at a time: seeds and their mean")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    for name, draw in (("results", cost), ("filter_lr", filter_lr), ("ablations", ablations)):
        draw().savefig(FOLDER / f"{name}.png", dpi=110)
