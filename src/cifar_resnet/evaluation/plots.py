"""Matplotlib figures from records and arrays."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from cifar_resnet.data.dataset import Pixels
from cifar_resnet.evaluation.metrics import Floats, Table
from cifar_resnet.files import atomic_write
from cifar_resnet.training.history import EpochRecord

MAX_COUNTED = 20  # classes; with more, the confusion matrix has no numbers
MAX_NAMED = 200  # classes; with more, its names would overlap
MAX_LETTERS = 24  # of a class's name
BLUE, RED = "#0072B2", "#D55E00"  # Okabe and Ito's blue and vermilion: distinct for colour-blind readers


def write_figure(path: Path, figure: Figure) -> None:
    """Write a PNG file; raises as `atomic_write` does."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def plot_learning_curves(records: Sequence[EpochRecord]) -> Figure:
    """Loss and accuracy by epoch, on training batches and on the validation images."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [record.epoch for record in records]
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part, colour in (("train", BLUE), ("validation", RED)):
            values = [getattr(record, f"{part}_{quantity}") for record in records]
            if None not in values:
                axes.plot(epochs, values, marker="o", markersize=3, color=colour, label=part)
        axes.set(xlabel="epoch", ylabel="accuracy" if quantity == "accuracy" else "cross-entropy (nats)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.axes[0].set_title("Loss (training: augmented images, label smoothing)", fontsize=10)
    figure.axes[1].set_title("Accuracy (training: augmented images)", fontsize=10)
    figure.axes[1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def label_text(class_name: str) -> str:
    """A class's name as text in a figure: not too long, and without the formulas that matplotlib sees between $."""
    text = class_name if len(class_name) <= MAX_LETTERS else f"{class_name[: MAX_LETTERS - 1]}…"
    return text.replace("$", r"\$")


def plot_confusion_matrix(counts: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Counts (C, C) as a heat map of the mistakes; the diagonal has numbers but no colour."""
    scale = max(1.0, min(len(classes), MAX_NAMED) / 32)
    figure = Figure(figsize=(7 * scale, 6.2 * scale), layout="constrained")
    axes = figure.subplots()
    mistakes = np.where(np.eye(len(classes), dtype=bool), 0, counts)
    heat_map = axes.imshow(mistakes, cmap="Blues")
    for row, column in np.ndindex(*counts.shape) if len(classes) <= MAX_COUNTED else ():
        dark = mistakes[row, column] > 0.6 * max(int(mistakes.max()), 1)
        colour, weight = ("white" if dark else "black"), ("bold" if row == column else "normal")
        text = str(counts[row, column])
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour, fontweight=weight)
    names = [label_text(name) for name in classes] if len(classes) <= MAX_NAMED else []
    size = None if len(classes) <= MAX_COUNTED else 8
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set(xlabel="predicted class", ylabel="true class", title="Test images by true and predicted class")
    figure.colorbar(heat_map, label="misclassified images", shrink=0.8)
    return figure


def plot_class_scores(scores: Table) -> Figure:
    """Recall of each class with its interval, and precision; the class with the lowest recall is at the bottom."""
    figure = Figure(figsize=(7, max(3.8, 1 + 0.2 * len(scores))), layout="constrained")
    axes = figure.subplots()
    rows = sorted(scores, key=lambda row: row["recall"])
    positions, recall = range(len(rows)), _column(rows, "recall")
    xerr = [recall - _column(rows, "recall_low"), _column(rows, "recall_high") - recall]
    axes.errorbar(recall, positions, xerr=xerr, fmt="o", color=BLUE, capsize=3, label="recall, 95 % interval")
    axes.plot(_column(rows, "precision"), positions, "D", color=RED, label="precision")
    axes.set_yticks(positions, [label_text(row["class"]) for row in rows])
    axes.set(xlabel="recall, precision", ylabel="class", title="Recall and precision by class")
    format_percent(axes.xaxis)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def plot_reliability(bins: Table, error: float) -> Figure:
    """Accuracy with its interval against confidence for every bin; `error` is the expected calibration error."""
    figure = Figure(figsize=(4.6, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="grey", linestyle="--", label="perfectly calibrated")
    confidence, accuracy = _column(bins, "confidence"), _column(bins, "accuracy")
    yerr = [accuracy - _column(bins, "accuracy_low"), _column(bins, "accuracy_high") - accuracy]
    above.errorbar(confidence, accuracy, yerr=yerr, fmt="o", color=BLUE, capsize=3, label="model, 95 % interval")
    above.set(ylabel="accuracy", title=f"Reliability: expected calibration error {error:.3f}")
    above.legend()
    below.bar(confidence, _column(bins, "images"), width=0.04, color=BLUE)
    below.set(xlabel="confidence", ylabel="images", yscale="log")
    for axis in (above.yaxis, below.xaxis):
        format_percent(axis)
    above.grid(alpha=0.3)
    return figure


def plot_accuracy_coverage(curve: Table) -> Figure:
    """Accuracy on the most confident predictions against their share of all images, in steps of one percent."""
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    accuracy = _column(curve, "accuracy")
    axes.plot(_column(curve, "coverage"), accuracy, color=BLUE)
    axes.set(xlabel="coverage: share of the images, most confident first", ylabel="accuracy on these images")
    axes.set_title(f"All images: {accuracy[-1]:.1%}; most confident 90 %: {accuracy[89]:.1%}", fontsize=10)
    format_percent(axes.xaxis)
    format_percent(axes.yaxis, decimals=1)
    axes.grid(alpha=0.3)
    return figure


def plot_corruptions(accuracy: Table, baseline: float) -> Figure:
    """Accuracy by corruption and severity as a heat map; `baseline` is the accuracy without corruption."""
    figure = Figure(figsize=(6, 5.4), layout="constrained")
    axes = figure.subplots()
    severities = [name for name in accuracy[0] if name.startswith("severity_")]
    shares = np.stack([_column(accuracy, name) for name in severities], axis=1)
    heat_map = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(*shares.shape):
        colour = "black" if shares[row, column] > 0.5 else "white"
        axes.text(column, row, f"{shares[row, column]:.1%}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(severities)), [name.removeprefix("severity_") for name in severities])
    axes.set_yticks(range(len(shares)), [row["corruption"].replace("_", " ") for row in accuracy])
    axes.set(xlabel="severity", ylabel="corruption")
    axes.set_title(f"Accuracy under corruption: mean {shares.mean():.1%}, uncorrupted {baseline:.1%}", fontsize=10)
    figure.colorbar(heat_map, label="accuracy", shrink=0.8, format=PercentFormatter(1, decimals=0))
    return figure


def plot_notice(text: str) -> Figure:
    """A sentence in place of a figure that has no data."""
    figure = Figure(figsize=(5, 1))
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure


def plot_gallery(pixels: Pixels, captions: Sequence[str], title: str) -> Figure:
    """Images (N, 3, 32, 32) with one caption each, six in a row; a notice if there are no images."""
    if not len(captions):
        return plot_notice(f"{title}: no images")
    columns, rows = 6, math.ceil(len(captions) / 6)
    figure = Figure(figsize=(9, 1.85 * rows), layout="constrained")
    for index, (image, caption) in enumerate(zip(pixels, captions, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, index)
        axes.imshow(image.transpose(1, 2, 0))
        axes.set_title(caption, fontsize=7)
        axes.set_axis_off()
    figure.suptitle(title, fontsize=10)
    return figure


def plot_first_filters(filters: Floats) -> Figure:
    """The first layer's filters (F, 3, K, K) as RGB images, each scaled to its own range."""
    columns, rows = 12, math.ceil(len(filters) / 12)
    figure = Figure(figsize=(8, 0.8 * rows + 0.5), layout="constrained")
    for index, weights in enumerate(filters, start=1):
        axes: Axes = figure.add_subplot(rows, columns, index)
        axes.imshow(((weights - weights.min()) / max(float(np.ptp(weights)), 1e-12)).transpose(1, 2, 0))
        axes.set_axis_off()
    count, _, height, width = filters.shape
    title = f"First layer: {count} filters of {width}x{height} pixels as RGB images, each scaled to its own range"
    figure.suptitle(title, fontsize=10)
    return figure


def _column(rows: Table, name: str) -> Floats:
    return np.array([row[name] for row in rows], dtype=float)


def format_percent(axis: Any, decimals: int | None = 0) -> None:
    """Label the ticks in percent; `decimals` None: as many as distinguish the ticks."""
    axis.set_major_formatter(PercentFormatter(1, decimals=decimals))
