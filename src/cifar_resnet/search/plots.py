"""Figures of a search: Optuna's where they show the same, own ones for pruned trials, conditional layers and costs."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, pyplot
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from optuna.exceptions import ExperimentalWarning
from optuna.importance import FanovaImportanceEvaluator
from optuna.visualization.matplotlib import plot_param_importances

from cifar_resnet.evaluation.plots import BLUE, RED, format_percent, plot_notice
from cifar_resnet.search.results import pareto_front
from cifar_resnet.search.study import Study
from cifar_resnet.search.trial import TrialResult


def plot_search_results(study: Study, results: list[TrialResult]) -> dict[str, Figure]:
    """Figures by file name, of the trials with an accuracy; a notice if fewer than two finished trials differ."""
    measured = [result for result in results if result.ended and result.accuracy is not None]
    finished = [result for result in measured if result.outcome == "finished"]
    accuracy = [float(result.accuracy or 0) for result in finished]
    if len(set(accuracy)) < 2:
        return {"history": plot_notice("the figures need two finished trials that differ in accuracy")}
    figures = {
        "history": plot_search_history(
            [result.number for result in measured],
            [float(result.accuracy or 0) for result in measured],
            [result.outcome == "finished" for result in measured],
        ),
        "parallel_coordinates": plot_parallel_coordinates(parallel_columns(finished), accuracy),
        "importance": plot_importance(study),
    }
    for cost in ("parameters", "multiply_adds"):
        costs = [int(getattr(result, cost)) for result in finished]
        numbers = [result.number for result in finished]
        label = cost.replace("_", "-")
        figures[f"accuracy_{cost}"] = plot_accuracy_cost(costs, accuracy, pareto_front(costs, accuracy), numbers, label)
    return figures


def plot_search_history(numbers: Sequence[int], accuracy: Sequence[float], finished: Sequence[bool]) -> Figure:
    """Accuracy by trial with the best so far.

    Own code: Optuna's history has no pruned and failed trials, and no best so far for nsga2.
    """
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    is_finished = np.array(finished, dtype=bool)
    x, y = np.array(numbers), np.array(accuracy, dtype=float)
    axes.plot(x[is_finished], y[is_finished], "o", color=BLUE, label="finished")
    if not is_finished.all():
        axes.plot(x[~is_finished], y[~is_finished], "x", color="grey", label="pruned or failed, at its last epoch")
    axes.step(x[is_finished], np.maximum.accumulate(y[is_finished]), where="post", color=RED, label="best so far")
    axes.set(xlabel="trial", ylabel="validation accuracy", title="Accuracy by trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    format_percent(axes.yaxis)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def plot_importance(study: Study) -> Figure:
    """Share of the accuracy's variance that each parameter explains (fANOVA), the largest at the top.

    Only parameters that every finished trial uses. Drawn by Optuna.
    """
    pyplot.switch_backend("Agg")  # Optuna draws with pyplot, which else needs the backend that MPLBACKEND names
    with pyplot.rc_context(), warnings.catch_warnings():  # Optuna sets the style of all later figures
        warnings.simplefilter("ignore", ExperimentalWarning)
        axes = plot_param_importances(
            study.optuna_study,
            evaluator=FanovaImportanceEvaluator(seed=0),
            params=study.shared_parameters(),
            target=lambda trial: trial.values[0],
            target_name="accuracy",
        )
    axes.set_xlabel("share of the accuracy's variance (fANOVA)")
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.set_layout_engine("constrained")  # long names do not fit otherwise
    pyplot.close(figure)
    return figure


def plot_parallel_coordinates(columns: Mapping[str, Sequence[Any]], accuracy: Sequence[float]) -> Figure:
    """A line per trial through its parameters, coloured by accuracy; a line skips the columns where its value is None.

    Own code: Optuna also draws values of layers that a network does not have, and its labels overlap.
    """
    figure = Figure(figsize=(max(7, 0.75 * len(columns) + 2), 4.6), layout="constrained")
    axes = figure.subplots()
    colours = Normalize(min(accuracy), max(accuracy) if max(accuracy) > min(accuracy) else min(accuracy) + 1e-9)
    scales = [_scale_column(column) for column in columns.values()]
    for row in np.argsort(accuracy):
        points = [(x, heights[row]) for x, (heights, _) in enumerate(scales) if heights[row] is not None]
        axes.plot(*zip(*points, strict=True), color=colormaps["cividis"](colours(accuracy[row])), alpha=0.8)
    for x, (_, ticks) in enumerate(scales):
        axes.axvline(x, color="grey", linewidth=0.5)
        for text, height in ticks.items():
            axes.text(x + 0.04, height, text, fontsize=7, va="center")
    axes.set_xticks(range(len(columns)), list(columns), rotation=40, ha="right", fontsize=8)
    axes.set_yticks([])
    axes.set_title("Parameters of each finished trial")
    figure.colorbar(
        ScalarMappable(colours, "cividis"), ax=axes, label="accuracy", format=PercentFormatter(1, decimals=None)
    )
    return figure


def plot_accuracy_cost(cost: Sequence[float], accuracy: Sequence[float], front: Sequence[int], numbers: Sequence[int],
                  label: str) -> Figure:  # fmt: skip
    """Accuracy against parameters or multiply-adds; `front` are the indices of the Pareto front.

    Own code: Optuna's Pareto front needs a study with two objectives, and has no trial numbers and no log scale.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(cost, accuracy, "o", color=BLUE, label="finished trials")
    by_cost = sorted(front, key=lambda index: cost[index])
    x, y = [cost[index] for index in by_cost], [accuracy[index] for index in by_cost]
    axes.step(x, y, where="post", color=RED, marker="o", label="Pareto front")
    for index in by_cost:
        axes.annotate(str(numbers[index]), (cost[index], accuracy[index]), xytext=(4, -10), textcoords="offset points",
                      fontsize=8)  # fmt: skip
    axes.set(xlabel=label, ylabel="validation accuracy", title=f"Accuracy against {label}")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    format_percent(axes.yaxis, None)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def parallel_columns(finished: list[TrialResult]) -> dict[str, list[Any]]:
    """The trials' values by parameter, None where a network does not have the layer; only parameters that vary."""
    rows = []
    for result in finished:
        channels = result.overrides.get("model.channels", [])
        row: dict[str, Any] = {"layers": len(channels)} if channels else {}
        for name, value in result.overrides.items():
            entries = enumerate(value) if isinstance(value, list) else [("", value)]
            row |= {f"{name}.{layer}".removesuffix(".").split(".", 1)[1]: entry for layer, entry in entries}
        rows.append(row)
    longest = max(rows, key=len)  # has the layers in order
    names = dict.fromkeys([*longest, *(name for row in rows for name in row)])
    columns = {name: [row.get(name) for row in rows] for name in names}
    return {name: column for name, column in columns.items() if len({*column} - {None}) > 1}


def _scale_column(column: Sequence[Any]) -> tuple[list[float | None], dict[str, float]]:
    """(height of each value from 0 to 1, height of each tick label): floats by their size, choices by their rank."""
    values = [value for value in column if value is not None]
    if any(isinstance(value, float) for value in values) and min(values) < max(values):
        low, high = min(values), max(values)
        heights = {value: (value - low) / (high - low) for value in values}
        ticks = {f"{value:.3g}": heights[value] for value in (low, high)}
    else:
        ordered = sorted(set(values), key=lambda value: (isinstance(value, str), value))
        heights = {value: (rank + 0.5) / len(ordered) for rank, value in enumerate(ordered)}
        ticks = {str(value): heights[value] for value in ordered}
    return [heights.get(value) for value in column], ticks
