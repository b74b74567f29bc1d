import numpy as np

from cifar_resnet import figures
from cifar_resnet.records import EpochRecord

HISTORY = [EpochRecord(e, 2.0 / e, 0.3 * e, 1.0 / e, 0.2 * e, 0.1, 9.0, 100.0) for e in (1, 2, 3)]


def test_learning_curves_draw_the_history_with_labelled_axes() -> None:
    loss, accuracy = figures.learning_curves(HISTORY).axes
    assert [line.get_label() for line in loss.lines] == ["train", "validation"]
    assert list(loss.lines[0].get_ydata()) == [2.0, 1.0, 2.0 / 3]
    assert list(accuracy.lines[1].get_ydata()) == [0.2, 0.4, 0.2 * 3]
    assert all(axes.get_xlabel() == "epoch" and axes.get_ylabel() for axes in (loss, accuracy))


def test_learning_curves_leave_out_what_was_not_measured() -> None:
    blind = [EpochRecord(1, 2.0, 0.3, None, None, 0.1, 9.0, 100.0)]
    assert [line.get_label() for line in figures.learning_curves(blind).axes[0].lines] == ["train"]


def test_the_confusion_matrix_writes_every_count_and_colours_mistakes_only() -> None:
    axes = figures.confusion_matrix(np.array([[90, 1], [2, 80]]), ["cat", "dog"]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["90", "1", "2", "80"]
    shown = axes.images[0].get_array()
    assert shown is not None
    assert shown.tolist() == [[0, 1], [2, 0]]


def test_class_scores_are_ordered_by_f1() -> None:
    scores = {
        "easy": {"precision": 1.0, "recall": 0.9, "f1": 0.95},
        "hard": {"precision": 0.5, "recall": 0.6, "f1": 0.55},
    }
    axes = figures.class_scores(scores).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["hard", "easy"]
    assert list(axes.lines[0].get_xdata()) == [0.5, 1.0]
