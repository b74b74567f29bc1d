from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib import pyplot
from test_study import ask, finish, make_study

from cifar_resnet.search.plots import plot_accuracy_cost, plot_importance


def test_accuracy_against_cost_marks_the_pareto_front_and_labels_costs_with_units() -> None:
    axes = plot_accuracy_cost([2e7, 4e7, 3e7], [0.5, 0.675, 0.45], [0, 1], [7, 8, 9], "multiply-adds").axes[0]
    points, front = axes.lines
    assert list(points.get_ydata()) == [0.5, 0.675, 0.45]
    assert front.get_xydata().tolist() == [[2e7, 0.5], [4e7, 0.675]]
    assert [text.get_text() for text in axes.texts] == ["7", "8"]
    assert axes.xaxis.get_major_formatter()(2e7) == "20 M"
    assert axes.yaxis.get_major_formatter()(0.675) == "67.5%"


def test_importance_covers_the_parameters_of_all_finished_trials_and_the_largest_is_at_the_top(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    for _ in range(8):
        trial = ask(study)
        finish(study, trial, 0.5 + 0.1 * len(trial.params.model.channels))
    axes = plot_importance(study).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    shares = [bar.get_width() for bar in axes.patches]
    assert set(names) == {
        "model.layers",
        "model.channels.0",
        "model.blocks.0",
        "model.head_pool_kernel",
        "train.filter_lr",
    }
    assert names[-1] == "model.layers"
    assert shares == sorted(shares)
    assert sum(shares) == pytest.approx(1)


def test_the_importance_figure_does_not_change_the_style_of_other_figures(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    for accuracy in (0.5, 0.7):
        finish(study, ask(study), accuracy)
    style = mpl.rcParams["axes.facecolor"]
    plot_importance(study).savefig(tmp_path / "importance.png")
    assert mpl.rcParams["axes.facecolor"] == style
    assert pyplot.get_fignums() == []
