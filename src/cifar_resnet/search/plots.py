"""Figures of a search."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from cifar_resnet.evaluation.plots import BLUE, RED, format_percent, plot_notice
from cifar_resnet.search.results import pareto_front
from cifar_resnet.search.study import Result, Study


def plot_search_history(numbers: Sequence[int], accuracy: Sequence[float], finished: Sequence[bool]) -> Figure:
    """Accuracy by trial with the best so far; those that were stopped early stand at their last epoch."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    done = np.array(finished, dtype=bool)
    x, y = np.array(numbers), np.array(accuracy, dtype=float)
    axes.plot(x[done], y[done], "o", color=BLUE, label="finished")
    if not done.all():
        axes.plot(x[~done], y[~done], "x", color="grey", label="pruned or failed, at its last epoch")
    axes.step(x[done], np.maximum.accumulate(y[done]), where="post", color=RED, label="best so far")
    axes.set(xlabel="trial", ylabel="accuracy on the hold-out", title="Accuracy by trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    format_percent(axes.yaxis)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def plot_parallel_coordinates(columns: Mapping[str, Sequence[Any]], accuracy: Sequence[float]) -> Figure:
    """A line for each trial through what it drew, coloured by its accuracy; it passes by where a value is None."""
    figure = Figure(figsize=(max(7, 0.75 * len(columns) + 2), 4.6), layout="constrained")
    axes = figure.subplots()
    colours = Normalize(min(accuracy), max(accuracy) if max(accuracy) > min(accuracy) else min(accuracy) + 1e-9)
    places = [_positions(column) for column in columns.values()]
    order = np.argsort(accuracy)
    for row in order:
        points = [(x, place[row]) for x, (place, _) in enumerate(places) if place[row] is not None]
        axes.plot(*zip(*points, strict=True), color=colormaps["cividis"](colours(accuracy[row])), alpha=0.8)
    for x, (_, marks) in enumerate(places):
        axes.axvline(x, color="grey", linewidth=0.5)
        for text, height in marks.items():
            axes.text(x + 0.04, height, text, fontsize=7, va="center")
    axes.set_xticks(range(len(columns)), list(columns), rotation=40, ha="right", fontsize=8)
    axes.set_yticks([])
    axes.set_title("What each finished trial drew")
    figure.colorbar(
        ScalarMappable(colours, "cividis"), ax=axes, label="accuracy", format=PercentFormatter(1, decimals=None)
    )
    return figure


def plot_importance(shares: dict[str, float]) -> Figure:
    """Share of the variance that each parameter explains, the largest on top."""
    figure = Figure(figsize=(6, 0.28 * len(shares) + 1.2), layout="constrained")
    axes = figure.subplots()
    names = sorted(shares, key=lambda name: shares[name])
    axes.barh(names, [shares[name] for name in names], color=BLUE)
    axes.set(xlabel="share of the accuracy's variance", title="Importance (fANOVA)")
    axes.tick_params(axis="y", labelsize=8)
    format_percent(axes.xaxis)
    axes.grid(alpha=0.3, axis="x")
    return figure


def plot_accuracy_cost(cost: Sequence[float], accuracy: Sequence[float], front: Sequence[int], numbers: Sequence[int],
                  label: str) -> Figure:  # fmt: skip
    """Accuracy against parameters or multiply-adds; `front` are the places of those that none beats in both."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(cost, accuracy, "o", color=BLUE, label="finished trials")
    best = sorted(front, key=lambda place: cost[place])
    x, y = [cost[place] for place in best], [accuracy[place] for place in best]
    axes.step(x, y, where="post", color=RED, marker="o", label="Pareto front")
    for place in best:
        axes.annotate(str(numbers[place]), (cost[place], accuracy[place]), xytext=(4, -10), textcoords="offset points",
                      fontsize=8)  # fmt: skip
    axes.set(xlabel=label, ylabel="accuracy on the hold-out", title=f"Accuracy against {label}")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    format_percent(axes.yaxis, None)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _positions(column: Sequence[Any]) -> tuple[list[float | None], dict[str, float]]:
    """(height of each value on an axis from 0 to 1, heights of the marks): floats by their size, choices by rank."""
    present = [value for value in column if value is not None]
    if any(isinstance(value, float) for value in present) and min(present) < max(present):
        low, high = min(present), max(present)
        heights = {value: (value - low) / (high - low) for value in present}
        marks = {f"{value:.3g}": heights[value] for value in (low, high)}
    else:
        ordered = sorted(set(present), key=lambda value: (isinstance(value, str), value))
        heights = {value: (place + 0.5) / len(ordered) for place, value in enumerate(ordered)}
        marks = {str(value): heights[value] for value in ordered}
    return [heights.get(value) for value in column], marks


def plot_search_results(study: Study, results: list[Result]) -> dict[str, Any]:
    """Of the trials that measured something; a notice where there are too few."""
    measured = [each for each in results if each.ended and each.accuracy is not None]
    finished = [each for each in measured if each.outcome == "finished"]
    accuracy = [float(each.accuracy or 0) for each in finished]
    if len(set(accuracy)) < 2:
        return {"history": plot_notice("two finished trials that differ make a figure")}
    found = {
        "history": plot_search_history(
            [each.number for each in measured],
            [float(each.accuracy or 0) for each in measured],
            [each.outcome == "finished" for each in measured],
        ),
        "parallel_coordinates": plot_parallel_coordinates(parallel_columns(finished), accuracy),
        "importance": plot_importance(study.importance()),
    }
    for cost in ("parameters", "multiply_adds"):
        costs = [int(getattr(each, cost)) for each in finished]
        numbers = [each.number for each in finished]
        label = cost.replace("_", "-")
        found[f"accuracy_{cost}"] = plot_accuracy_cost(costs, accuracy, pareto_front(costs, accuracy), numbers, label)
    return found


def parallel_columns(finished: list[Result]) -> dict[str, list[Any]]:
    """What the trials drew, by name, a list by layer with None where a trial has no such layer; only what varies."""
    rows = []
    for each in finished:
        channels = each.changes.get("model.channels", [])
        row: dict[str, Any] = {"layers": len(channels)} if channels else {}
        for name, value in each.changes.items():
            entries = enumerate(value) if isinstance(value, list) else [("", value)]
            row |= {f"{name}.{place}".removesuffix(".").split(".", 1)[1]: entry for place, entry in entries}
        rows.append(row)
    longest = max(rows, key=len)  # has the layers in order
    names = dict.fromkeys([*longest, *(name for row in rows for name in row)])
    found = {name: [row.get(name) for row in rows] for name in names}
    return {name: column for name, column in found.items() if len({*column} - {None}) > 1}
