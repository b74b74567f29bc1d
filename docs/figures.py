"""Draw the figures of docs/results.md, research.md and experiments.md from their tables: `python docs/figures.py`."""

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cifar_resnet.evaluation.metrics import wilson_interval
from cifar_resnet.evaluation.plots import BLUE, RED
from cifar_resnet.files import read_rows

RESULTS, RESEARCH, SEARCH = (Path(__file__).parent / name for name in ("results", "research", "search"))
GREEN, PURPLE, ORANGE = "#009E73", "#CC79A7", "#E69F00"  # Okabe and Ito's bluish green, reddish purple and orange
GREY = "#7d8590"
COLOURS = {"default": BLUE, "wide": GREEN, "small": PURPLE, "robust": ORANGE, "record": RED}
NUM_VALIDATION = 10_000  # images
NUM_SEARCH_VALIDATION = 5_000  # images
UNCHANGED = "nothing"  # in the column `changed` of ablations.csv
Row = dict[str, str]


def main() -> None:
    figures: dict[Path, Callable[[], Figure]] = {
        RESULTS / "presets.png": plot_presets,
        RESULTS / "published.png": plot_published,
        RESEARCH / "cost.png": plot_cost,
        RESEARCH / "ablations.png": plot_ablations,
        RESEARCH / "filter_lr.png": plot_filter_lr,
        SEARCH / "agreement.png": plot_agreement,
    }
    for path, plot in figures.items():
        plot().savefig(path, dpi=110)


def plot_presets() -> Figure:
    """Test error against training time, with and without test-time augmentation; one point per training."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    rows = [row for row in read_rows(RESULTS / "trainings.csv") if row["machine"] == "AVX512-bf16" and row["minutes"]]
    current = [row for row in rows if row["recipe"] in COLOURS and (row["recipe"], row["epochs"]) != ("record", "30")]
    for row in current:
        plot_training(axes, float(row["minutes"]), row)
    for recipe, colour in COLOURS.items():
        highest = min((row for row in current if row["recipe"] == recipe), key=lambda row: float(row["test_accuracy"]))
        point = float(highest["minutes"]), 1 - float(highest["test_accuracy"])
        text = f"{recipe}, {float(highest['parameters']) / 1e6:.2f} M parameters"
        axes.annotate(text, point, xytext=(0, 9), textcoords="offset points", ha="center", color=colour)
    axes.plot([], [], "o", color=GREY, label="without test-time augmentation")
    axes.plot([], [], "o", color="grey", markerfacecolor="white", label="with test-time augmentation")
    axes.set(xscale="log", xlim=(9, 420), ylim=(0.03, 0.067), title="Test error of the presets, one point per training")
    axes.set(xlabel="training time on two cores with AVX512-bf16", ylabel="test error")
    axes.set_xticks([10, 30, 60, 120, 240], ["10 min", "30 min", "1 h", "2 h", "4 h"])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    axes.grid(alpha=0.3)
    axes.legend()
    suit_any_background(figure)
    return figure


def suit_any_background(figure: Figure) -> None:
    """No background, and text and lines in a grey that is readable on white and on black."""
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
        axes.tick_params(colors=GREY)
        axes.spines[:].set_color(GREY)
        legend = axes.get_legend()
        legend.get_frame().set(alpha=0, edgecolor=GREY)
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *legend.get_texts()):
            text.set_color(GREY)


def plot_training(axes: Axes, cost: float, row: Row) -> None:
    """One training: its error without (filled) and with (hollow) test-time augmentation."""
    errors = [1 - float(row[column]) for column in ("test_accuracy", "test_accuracy_tta")]
    colour = COLOURS[family_of(row)]
    axes.plot([cost, cost], errors, color=colour, linewidth=1, alpha=0.5)
    axes.plot([cost], errors[:1], "o", color=colour)
    axes.plot([cost], errors[1:], "o", color=colour, markerfacecolor="white")


def family_of(row: Row) -> str:
    return row["recipe"].split(",")[0]


def pf_equivalents(row: Row) -> float:
    """Training time in seconds times the matrix-product rate in TFLOP/s, divided by 1000."""
    return float(row["minutes"]) * 60 * float(row["matmul_tflops"]) / 1000


def plot_cost() -> Figure:
    """Test error of every training against its cost; the number beside a point is its epochs.

    AMX is not shown: its matrix products are so fast that convolutions reach only half of their rate.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    rows = [row for row in read_rows(RESULTS / "trainings.csv") if row["minutes"] and row["machine"] != "AMX"]
    labels: list[tuple[float, float, str]] = []  # two of the same number, side by side, could not be read
    for _, seeds in groupby(rows, key=lambda row: (row["recipe"], row["epochs"], row["precision"])):
        group = sorted(seeds, key=lambda row: float(row["test_accuracy"]))
        for row in group:
            plot_training(axes, pf_equivalents(row), row)
        cost, error, epochs = pf_equivalents(group[0]), 1 - float(group[0]["test_accuracy"]), group[0]["epochs"]
        if not any(epochs == text and abs(x / cost - 1) < 0.1 and abs(y - error) < 0.001 for x, y, text in labels):
            offset = (-16, -3) if family_of(group[0]) == "robust" else (5, 3)  # to the left of its neighbours
            axes.annotate(epochs, (cost, error), xytext=offset, textcoords="offset points", fontsize=8)
            labels.append((cost, error, epochs))
    for family, colour in COLOURS.items():
        has_versions = len({(row["recipe"], row["epochs"]) for row in rows if family_of(row) == family}) > 1
        label = f"{family} and its earlier versions" if has_versions else family
        axes.plot([], [], "o", color=colour, label=label)
    axes.plot([], [], "o", color="grey", markerfacecolor="white", label="with test-time augmentation")
    axes.axhline(0.04, color="grey", linestyle="--", linewidth=1, label="goal: 96 % without test-time augmentation")
    axes.set(
        xscale="log",
        xlim=(0.4, 7),
        ylim=(0.033, 0.07),
        title="Test error against training cost (beside the points: epochs)",
    )
    axes.set(xlabel="training cost (PF-equivalents)", ylabel="test error")
    axes.set_xticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    return figure


def plot_published() -> Figure:
    """Accuracy of the published networks and of this project's, with 95 % intervals, on the 10,000 test images."""
    rows = read_rows(RESULTS / "published.csv")[::-1]
    figure = Figure(figsize=(8, 6.6), layout="constrained")
    axes = figure.subplots()
    for index, row in enumerate(rows):
        accuracy = float(row["accuracy"])
        low, high = wilson_interval(round(accuracy * NUM_VALIDATION), NUM_VALIDATION)
        colour = BLUE if row["published"] == "True" else RED
        axes.errorbar([accuracy], [index], xerr=[[accuracy - low], [high - accuracy]], fmt="o", capsize=2, color=colour)
    axes.set_yticks(range(len(rows)), [row["network"] for row in rows], fontsize=8)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color("black" if row["published"] == "True" else RED)
    axes.set(xlabel="accuracy on the 10,000 test images, 95 % interval", ylim=(-1, len(rows)))
    axes.set_title("This project's networks (orange) among 30 published ones")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.3)
    return figure


def plot_filter_lr() -> Figure:
    """Training loss by epoch and final validation accuracy at three learning rates."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2, width_ratios=(3, 2))
    for (rate, group), colour in zip(
        groupby(read_rows(RESEARCH / "filter_lr.csv"), key=lambda row: row["filter_lr"]),
        ("grey", BLUE, RED),
        strict=True,
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
    groups = groupby(read_rows(RESEARCH / "ablations.csv"), key=lambda row: row["changed"])
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
    axes.set_title("One change of the recipe at a time: seeds and their mean")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    axes.grid(alpha=0.3)
    return figure


def plot_agreement() -> Figure:
    """Validation accuracy after a full training against that of the search; one point per trial."""
    in_search = {row["number"]: float(row["accuracy"]) for row in read_rows(SEARCH / "trials.csv")}
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for index, row in enumerate(read_rows(SEARCH / "full.csv")):
        x, y = in_search[row["trial"]], float(row["validation_accuracy"])
        low, high = wilson_interval(round(y * NUM_SEARCH_VALIDATION), NUM_SEARCH_VALIDATION)
        colour, name = (RED, "default") if row["trial"] == "0" else (BLUE, row["trial"])
        axes.errorbar([x], [y], [[y - low], [high - y]], fmt="o", capsize=3, color=colour)
        end, offset = (low, -14) if index % 2 == 0 else (high, 5)  # neighbours would overlap
        axes.annotate(name, (x, end), xytext=(0, offset), textcoords="offset points", ha="center", color=colour)
    axes.set(xlabel="accuracy in the search, 4 epochs", ylabel="accuracy in full, 15 epochs, 95 % interval")
    axes.set_title("Six of 24 trials trained in full")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    main()
