"""The model card: a page in Markdown about a model, from its params and results; also its description in MLflow."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifar_resnet.data.dataset_name import CIFAR10, dataset_name, list_classes
from cifar_resnet.files import read_object, read_rows
from cifar_resnet.params.overrides import to_hydra
from cifar_resnet.params.schema import TrainParams

CARD_FILE = "model-card.md"
# With the columns that a table must have; one without them may be empty.
TABLES = {"class_scores": ("class", "recall", "precision"), "confused_pairs": (), "corruptions": ()}
SAME_RESULT = {"device", "precision", "processes"}  # keys of `train` that say where, not how
MAX_CHARACTERS = 5000  # of a description in MLflow on PostgreSQL
MAX_CLASSES = 20  # in a list or table
INTENDED_USE = """## Intended use

Teaching, comparing training methods, and trying MLOps tools on a small task.
Not for decisions that affect people, property or safety.
"""
GENERAL_LIMITS = """\
- It answers every image with one of its {count} classes, even if the image shows something else.
- It sees 32x32 pixels. Larger photos are reduced, and details are lost.
- All figures are for {data}. Photos from other sources can be harder.
"""
CIFAR10_LIMITS = """\
- About 3.3 % of CIFAR-10's test images have near duplicates in its training part (Barz and Denzler, 2020).
"""
SMALL_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def fit_description(card: str) -> str:
    """The card, without its last lines if MLflow on PostgreSQL would refuse it."""
    if len(card) <= MAX_CHARACTERS:
        return card
    note = f"\n\n... ({CARD_FILE} in data/registry is complete)\n"
    return card[: MAX_CHARACTERS - len(note)].rpartition("\n")[0] + note


def model_card(
    name: str,
    config: dict[str, Any],
    statistics: dict[str, Any],
    metrics: dict[str, Any],
    tables: dict[str, list[dict[str, str]]],
    recipe: TrainParams,
) -> str:
    """The card of the model `name`. Equal results give an equal card, apart from the duration of the training.

    Args:
        config: the content of model.json.
        statistics: the content of statistics.json.
        metrics: the content of metrics.json.
        tables: the rows of the tables TABLES of evaluate.
        recipe: the params of the training.
    """
    sections = [
        _summary(name, config, metrics),
        _data(statistics),
        _recipe(config, recipe),
        _classes(tables["class_scores"]),
        *([_corruptions(metrics, tables["corruptions"])] if tables["corruptions"] else []),
        _calibration(config, statistics, metrics),
        INTENDED_USE,
        _limits(statistics, metrics, tables, recipe),
    ]
    return "\n".join(sections)


def read_card(name: str, prepared: Path, model: Path, evaluation: Path, recipe: TrainParams) -> str:
    """`model_card` from the folders that preprocess, train and evaluate write; a file without rows is empty."""
    tables = {table: read_rows(evaluation / f"{table}.csv", *columns) for table, columns in TABLES.items()}
    return model_card(
        name,
        read_object(model / "model.json", "classes", "provenance"),
        read_object(prepared / "statistics.json", "images", "images_per_class", "classes", "source"),
        read_object(evaluation / "metrics.json", "accuracy", "accuracy_tta", "parameters"),
        tables,
        recipe,
    )


def _summary(name: str, config: dict[str, Any], metrics: dict[str, Any]) -> str:
    rows = [
        (
            "without test-time augmentation",
            _percent(metrics["accuracy"], 2),
            _interval(*metrics["accuracy_interval"], decimals=2),
        ),
        (
            "with test-time augmentation",
            _percent(metrics["accuracy_tta"], 2),
            _interval(*metrics["accuracy_interval_tta"], decimals=2),
        ),
    ]
    if "balanced_accuracy" in metrics:
        rows.append(("mean over the classes (balanced accuracy)", _percent(metrics["balanced_accuracy"], 2), ""))
    if "mean_corruption_accuracy" in metrics:
        rows.append(("under corruption (mean of all)", _percent(metrics["mean_corruption_accuracy"]), ""))
    return (
        f"# Model card: {name}\n\n"
        f"A residual network that assigns a color image of 32x32 pixels to one of {len(config['classes'])} classes.\n"
        f"It has {metrics['parameters']:,} parameters and needs {metrics['multiply_adds'] / 1e6:,.0f} million "
        "multiply-adds per image.\n\n" + _table(("prediction", "test accuracy", "95 % interval"), rows)
    )


def _data(statistics: dict[str, Any]) -> str:
    counts = ", ".join(f"{count:,} {split}" for split, count in statistics["images"].items() if count)
    return (
        f"## Data\n\n{_data_name(statistics)} ({counts} images), {_class_sizes(statistics)}.\n"
        "The weights were trained on the train images only.\n"
        f"The classes: {_class_list(statistics['classes'])}.\n"
    )


def _data_name(statistics: dict[str, Any]) -> str:
    name = dataset_name(statistics["source"])
    return name if name == CIFAR10 else f"`{name}`"


def _class_list(classes: list[str]) -> str:
    return ", ".join(classes) if len(classes) <= MAX_CLASSES else list_classes(classes)


def _class_sizes(statistics: dict[str, Any]) -> str:
    """That all classes have equally many images, or how many train images the classes have."""
    sizes = {split: counts.values() for split, counts in statistics["images_per_class"].items()}
    if all(min(counts) == max(counts) for counts in sizes.values()):
        return "equally many of each class"
    return f"{min(sizes['train']):,} to {max(sizes['train']):,} train images of a class"


def _recipe(config: dict[str, Any], recipe: TrainParams) -> str:
    provenance, seconds = config["provenance"], config["provenance"]["seconds"]
    start = (
        f" It started from the weights {provenance['init']} ({provenance['init_weights'][:8]})."
        if "init" in provenance
        else ""
    )
    settings = recipe.model_dump(exclude=SAME_RESULT | (set() if start else {"init"}))
    epochs = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
    machine = f"{provenance['cpu']}, {provenance['threads']} threads, {provenance['precision']}"
    return (
        f"## Recipe\n\nTrained for {epochs}, in {seconds / 60:,.1f} min ({machine}).{start}\n\n"
        f"```\n{_settings('model', config['architecture'])}\n{_settings('train', settings)}\n```\n"
    )


def _settings(section: str, values: dict[str, Any]) -> str:
    words = " ".join(f"{key}={to_hydra(value)}" for key, value in values.items())
    return textwrap.fill(f"{section}: {words}", 100, subsequent_indent="  ", break_on_hyphens=False)


def _classes(scores: list[dict[str, str]]) -> str:
    """A table of all classes, or of those with the lowest recall."""
    title = "## Accuracy per class"
    if len(scores) > MAX_CLASSES:
        title += f": the {MAX_CLASSES} weakest of {len(scores)}"
        scores = sorted(scores, key=lambda row: float(row["recall"]))[:MAX_CLASSES]
    rows = [
        (
            row["class"],
            _percent(row["recall"]),
            _interval(row["recall_low"], row["recall_high"]),
            _percent(row["precision"]),
        )
        for row in scores
    ]
    return (
        f"{title}\n\n"
        "Recall: share of the class's images that are recognized. Precision: share of such answers that are right.\n\n"
        + _table(("class", "recall", "95 % interval", "precision"), rows)
    )


def _corruptions(metrics: dict[str, Any], corruptions: list[dict[str, str]]) -> str:
    rows = [
        (_words(row["corruption"]), *(_percent(row[key]) for key in ("mean", "severity_1", "severity_5")))
        for row in sorted(corruptions, key=lambda row: float(row["mean"]))
    ]
    return (
        "## Accuracy under corruption\n\n"
        f"Without corruption, the accuracy on these images is {_percent(metrics['corruption_baseline_accuracy'])}.\n\n"
        + _table(("corruption", "mean of five severities", "mildest", "strongest"), rows)
    )


def _calibration(config: dict[str, Any], statistics: dict[str, Any], metrics: dict[str, Any]) -> str:
    held_out = statistics["images"]["validation"]
    error = 100 * metrics["expected_calibration_error"]
    before = 100 * metrics["expected_calibration_error_uncalibrated"]
    fitted = (
        f"The logits are divided by a temperature of {config['temperature']:g}, fitted on the {held_out:,} validation "
        f"images.\nConfidence and accuracy then differ by {error:.1f} points on average, {before:.1f} without it.\n"
        if held_out
        else "No images were held out, so the probabilities are not calibrated.\n"
        f"Confidence and accuracy differ by {error:.1f} points on average.\n"
    )
    prefix = "selective_accuracy_"
    rows = [
        (f"{key.removeprefix(prefix)} %", _percent(value)) for key, value in metrics.items() if key.startswith(prefix)
    ]
    return f"## Calibration\n\n{fitted}The most confident answers are more often right:\n\n" + _table(
        ("share of the images", "accuracy"), [*rows, ("100 %", _percent(metrics["accuracy"]))]
    )


def _limits(
    statistics: dict[str, Any],
    metrics: dict[str, Any],
    tables: dict[str, list[dict[str, str]]],
    recipe: TrainParams,
) -> str:
    weakest = min(tables["class_scores"], key=lambda row: float(row["recall"]))
    lines = [f"- The weakest class is {weakest['class']}, with {_percent(weakest['recall'])} of its images recognized."]
    pairs = [row for row in tables["confused_pairs"] if int(row["images"])]
    if pairs:
        true, predicted, count = pairs[0]["true"], pairs[0]["predicted"], int(pairs[0]["images"])
        total = statistics["images_per_class"]["test"][true]
        lines.append(f"- Its most frequent mistake: {count:,} of {total:,} images of class {true} become {predicted}.")
    if tables["corruptions"]:
        worst = min(tables["corruptions"], key=lambda row: float(row["mean"]))
        before = _percent(metrics["corruption_baseline_accuracy"])
        lines.append(
            f"- The weakest corruption is {_words(worst['corruption'])}: "
            f"{_percent(worst['mean'])} instead of {before} are right."
        )
    lines.append(f"- One training with seed {recipe.seed}. Another seed gives a slightly different accuracy.")
    data, count = _data_name(statistics), len(statistics["classes"])
    general = GENERAL_LIMITS.format(data=data, count=SMALL_NUMBERS[count] if count < len(SMALL_NUMBERS) else count)
    return "## Limits\n\n" + "\n".join(lines) + "\n" + general + (CIFAR10_LIMITS if data == CIFAR10 else "")


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *(tuple(cell.replace("|", r"\|") for cell in row) for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _percent(share: float | str, decimals: int = 1) -> str:
    return f"{100 * float(share):.{decimals}f} %"


def _interval(low: float | str, high: float | str, *, decimals: int = 1) -> str:
    return f"{100 * float(low):.{decimals}f} to {100 * float(high):.{decimals}f} %"


def _words(name: str) -> str:
    """jpeg -> JPEG, gaussian_noise -> gaussian noise."""
    return "JPEG" if name == "jpeg" else name.replace("_", " ")
