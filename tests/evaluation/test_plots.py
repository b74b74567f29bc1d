import numpy as np
import pytest

from cifar_resnet.evaluation import plots
from cifar_resnet.training.history import EpochRecord

HISTORY = [EpochRecord(e, 2.0 / e, 0.3 * e, 1.0 / e, 0.2 * e, 0.1, 9.0, 100.0) for e in (1, 2, 3)]


def test_learning_curves_draw_the_history_with_labelled_axes() -> None:
    loss, accuracy = plots.plot_learning_curves(HISTORY).axes
    assert [line.get_label() for line in loss.lines] == ["train", "validation"]
    assert list(loss.lines[0].get_ydata()) == [2.0, 1.0, 2.0 / 3]
    assert list(accuracy.lines[1].get_ydata()) == [0.2, 0.4, 0.2 * 3]
    assert all(axes.get_xlabel() == "epoch" and axes.get_ylabel() for axes in (loss, accuracy))


def test_learning_curves_skip_validation_without_validation_images() -> None:
    history = [EpochRecord(1, 2.0, 0.3, None, None, 0.1, 9.0, 100.0)]
    assert [line.get_label() for line in plots.plot_learning_curves(history).axes[0].lines] == ["train"]


def test_the_confusion_matrix_has_every_count_and_colours_only_mistakes() -> None:
    axes = plots.plot_confusion_matrix(np.array([[90, 1], [2, 80]]), ["cat", "dog"]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["90", "1", "2", "80"]
    colours = axes.images[0].get_array()
    assert colours is not None
    assert colours.tolist() == [[0, 1], [2, 0]]


def test_the_confusion_matrix_of_many_classes_has_their_names_but_no_numbers() -> None:
    axes = plots.plot_confusion_matrix(np.eye(21, dtype=np.int64), [f"class {n}" for n in range(21)]).axes[0]
    assert len(axes.texts) == 0
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"class {n}" for n in range(21)]


def test_a_name_in_a_figure_is_shortened_and_is_no_formula() -> None:
    assert plots.label_text("cat") == "cat"
    assert plots.label_text("a" * 25) == "a" * 23 + "…"
    assert plots.label_text("$5") == r"\$5"


def test_classes_with_equal_beginnings_or_numbers_as_names_have_rows_of_their_own() -> None:
    row = {"precision": 1.0, "recall": 0.9, "recall_low": 0.8, "recall_high": 0.95}
    names = ["1", "2.5", *(f"{'a' * 30}{end}" for end in "bc")]
    axes = plots.plot_class_scores([{"class": name, **row} for name in names]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [plots.label_text(name) for name in names]


def test_class_scores_are_ordered_by_recall_with_their_interval() -> None:
    scores = [
        {"class": "easy", "precision": 1.0, "recall": 0.9, "recall_low": 0.8, "recall_high": 0.95},
        {"class": "hard", "precision": 0.5, "recall": 0.6, "recall_low": 0.5, "recall_high": 0.7},
    ]
    axes = plots.plot_class_scores(scores).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["hard", "easy"]
    recall, precision = axes.lines[0], axes.lines[-1]
    assert list(recall.get_xdata()) == [0.6, 0.9]
    assert list(precision.get_xdata()) == [0.5, 1.0]
    intervals = [segment[:, 0].tolist() for segment in axes.collections[0].get_segments()]
    assert intervals == [pytest.approx([0.5, 0.7]), pytest.approx([0.8, 0.95])]


def test_the_reliability_diagram_draws_the_bins_with_their_intervals() -> None:
    bins = [
        {"confidence": 0.5, "accuracy": 0.4, "accuracy_low": 0.1, "accuracy_high": 0.6, "images": 3},
        {"confidence": 0.9, "accuracy": 0.8, "accuracy_low": 0.7, "accuracy_high": 0.85, "images": 90},
    ]
    above, below = plots.plot_reliability(bins, 0.1).axes
    assert list(above.lines[1].get_ydata()) == [0.4, 0.8]
    intervals = [segment[:, 1].tolist() for segment in above.collections[0].get_segments()]
    assert intervals == [pytest.approx([0.1, 0.6]), pytest.approx([0.7, 0.85])]
    assert [bar.get_height() for bar in below.patches] == [3, 90]
    assert "0.100" in above.get_title()
    assert below.get_xlabel() == "confidence"


def test_the_coverage_curve_ends_with_the_accuracy_of_all_images() -> None:
    curve = [{"coverage": percent / 100, "accuracy": 1 - percent / 500} for percent in range(1, 101)]
    axes = plots.plot_accuracy_coverage(curve).axes[0]
    assert axes.lines[0].get_xydata()[[0, -1]].tolist() == [[0.01, 0.998], [1.0, 0.8]]
    assert axes.get_title() == "All images: 80.0%; most confident 90 %: 82.0%"


def test_the_gallery_has_every_image_with_its_caption() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 3, 32, 32), np.uint8)
    figure = plots.plot_gallery(pixels, [f"image {n}" for n in range(7)], "Seven images")
    axes = figure.axes
    assert figure.get_suptitle() == "Seven images"
    assert [image_axes.get_title() for image_axes in axes] == [f"image {n}" for n in range(7)]
    assert np.array_equal(axes[6].images[0].get_array(), pixels[6].transpose(1, 2, 0))


def test_the_heat_map_has_the_accuracy_at_every_severity() -> None:
    axes = plots.plot_corruptions(
        [
            {"corruption": "shot_noise", "mean": 0.75, "severity_1": 0.9, "severity_2": 0.6},
            {"corruption": "fog", "mean": 0.45, "severity_1": 0.8, "severity_2": 0.1},
        ],
        0.95,
    ).axes[0]
    assert [text.get_text() for text in axes.texts] == ["90.0%", "60.0%", "80.0%", "10.0%"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["shot noise", "fog"]
    assert axes.get_title() == "Accuracy under corruption: mean 60.0%, uncorrupted 95.0%"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2"]


def test_filters_are_scaled_to_their_own_range() -> None:
    figure = plots.plot_first_filters(np.arange(24.0).reshape(2, 3, 2, 2))
    assert "2 filters of 2x2 pixels" in figure.get_suptitle()
    axes = figure.axes
    assert len(axes) == 2
    drawn = axes[1].images[0].get_array()
    assert (drawn.min(), drawn.max()) == (0, 1)
