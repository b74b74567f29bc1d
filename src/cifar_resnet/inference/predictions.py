"""Predict a stream of images and write the predictions as CSV, JSON or a plain table."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from cifar_resnet.errors import UserError
from cifar_resnet.files import atomic_write
from cifar_resnet.inference.classifier import Classifier
from cifar_resnet.inference.image_reader import Chunk, skipped_text


@dataclass(frozen=True)
class Prediction:
    """The most likely classes of image number `index`, the most likely first, with their probabilities."""

    index: int
    file: str
    labels: list[int]
    class_names: list[str]
    confidences: list[float]


@dataclass
class Counts:
    """Numbers so far of predicted images, of pictures that could not be read, and of files that are not pictures."""

    predicted: int = 0
    skipped: int = 0
    ignored: int = 0

    def skipped_text(self) -> str:
        return skipped_text(self.skipped, self.ignored)


def predict_images(
    classifier: Classifier,
    chunks: Iterable[Chunk],
    counts: Counts,
    *,
    strict: bool,
    batch_size: int,
    top: int = 1,
) -> Iterator[Prediction]:
    """Yield the prediction of every image, and update `counts`.

    Args:
        chunks: from `read_images`; their read errors are printed on stderr.
        strict: whether the first read error ends the prediction.
        batch_size: number of images per forward pass.
        top: number of classes per image.

    Raises:
        UserError: if `strict` is set and an image cannot be read, or if there is no image.
    """
    for chunk in chunks:
        report_read_errors(chunk.errors, counts, strict=strict)
        counts.ignored += chunk.ignored
        probabilities = classifier.probabilities(chunk.pixels, batch_size=batch_size)
        for name, row in zip(chunk.names, probabilities, strict=True):
            labels = (-row).argsort(kind="stable")[:top].tolist()
            class_names = [classifier.classes[label] for label in labels]
            yield Prediction(counts.predicted, name, labels, class_names, [float(row[label]) for label in labels])
            counts.predicted += 1
    if counts.predicted == 0:
        raise UserError("there is no image to predict")


def report_read_errors(errors: list[str], counts: Counts, *, strict: bool) -> None:
    if errors and strict:
        raise UserError(errors[0])
    for message in errors:
        print(f"skipped: {message}", file=sys.stderr)
    counts.skipped += len(errors)


def write_predictions_csv(stream: TextIO, predictions: Iterable[Prediction]) -> None:
    """One row per image; further classes are in columns class_name_2, confidence_2 and so on."""
    table = csv.writer(stream, lineterminator="\n")
    for prediction in predictions:
        best = list(zip(prediction.class_names, prediction.confidences, strict=True))
        if prediction.index == 0:
            columns = [f"{key}_{rank}" for rank in range(2, len(best) + 1) for key in ("class_name", "confidence")]
            table.writerow(["index", "file", "label", "class_name", "confidence", *columns])
        cells = [cell for name, confidence in best for cell in (name, f"{confidence:.6f}")]
        table.writerow([prediction.index, escape_csv_formula(prediction.file), prediction.labels[0], *cells])


def escape_csv_formula(name: str) -> str:
    """The name, prefixed with an apostrophe if a spreadsheet would run it as a formula (OWASP, "CSV Injection")."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@")) else name


def write_predictions_json(stream: TextIO, predictions: Iterable[Prediction]) -> None:
    """An array with one object per line, so that a reader can process it line by line."""
    separator = "[\n"
    for prediction in predictions:
        best = zip(prediction.labels, prediction.class_names, prediction.confidences, strict=True)
        classes = [
            {"label": label, "class_name": name, "confidence": round(confidence, 6)} for label, name, confidence in best
        ]
        line = json.dumps({"index": prediction.index, "file": prediction.file, "classes": classes})
        stream.write(f"{separator}  {line}")
        separator = ",\n"
    stream.write("\n]\n")


def write_predictions_table(stream: TextIO, predictions: Iterable[Prediction]) -> None:
    for prediction in predictions:
        best = zip(prediction.class_names, prediction.confidences, strict=True)
        cells = "  ".join(f"{name:<10} {confidence:6.1%}" for name, confidence in best)
        stream.write(f"{cells}  {prediction.file}\n")


WRITERS = {"table": write_predictions_table, "csv": write_predictions_csv, "json": write_predictions_json}


def write_submission(path: Path, table: Path) -> None:
    """Write columns index and label of `table`, a predictions.csv, under the names that competitions use."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        submission = csv.writer(stream, lineterminator="\n")
        submission.writerow(("ID", "Labels"))
        with table.open(newline="", encoding="utf-8") as rows:
            submission.writerows((row["index"], row["label"]) for row in csv.DictReader(rows))
