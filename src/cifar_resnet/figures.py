"""Records or arrays to matplotlib figures; nothing here saves or shows anything."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from cifar_resnet.records import EpochRecord

TRAIN, HELD_OUT = "#0072B2", "#D55E00"  # Okabe and Ito's blue and vermilion: distinct for colour-blind readers


def learning_curves(records: Sequence[EpochRecord]) -> Figure:
    """Loss and accuracy by epoch, on training batches and on the hold-out."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [record.epoch for record in records]
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part, colour in (("train", TRAIN), ("validation", HELD_OUT)):
            values = [getattr(record, f"{part}_{quantity}") for record in records]
            if None not in values:
                axes.plot(epochs, values, marker="o", markersize=3, color=colour, label=part)
        axes.set(xlabel="epoch", ylabel="accuracy" if quantity == "accuracy" else "cross-entropy (nats)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.axes[0].set_title("loss (training: augmented, with label smoothing)", fontsize=10)
    figure.axes[1].set_title("accuracy (training: augmented images)", fontsize=10)
    figure.axes[1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def confusion_matrix(counts: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Counts (C, C) as a heat map of the mistakes; the diagonal is written, not coloured."""
    figure = Figure(figsize=(7, 6.2), layout="constrained")
    axes = figure.subplots()
    mistakes = np.where(np.eye(len(classes), dtype=bool), 0, counts)
    picture = axes.imshow(mistakes, cmap="cividis_r")
    for row, column in np.ndindex(*counts.shape):
        dark = mistakes[row, column] > 0.6 * max(int(mistakes.max()), 1)
        axes.text(
            column,
            row,
            str(counts[row, column]),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
            fontweight="bold" if row == column else "normal",
        )
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted class", ylabel="true class", title="Test images by true and predicted class")
    figure.colorbar(picture, label="mistaken images", shrink=0.8)
    return figure


def class_scores(scores: dict[str, dict[str, float]]) -> Figure:
    """Precision and recall of each class, as points on one scale."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    names = sorted(scores, key=lambda name: scores[name]["f1"])
    for measure, colour, marker in (("precision", TRAIN, "o"), ("recall", HELD_OUT, "D")):
        axes.plot([scores[n][measure] for n in names], names, marker, color=colour, label=measure)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(xlabel="share of images", title="Precision and recall by class, weakest at the bottom")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
