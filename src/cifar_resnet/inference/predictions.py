"""Labels and probabilities of a stream of images, and how they are written: as CSV, JSON or a table for people."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

from cifar_resnet.device import select_dtype
from cifar_resnet.errors import UserError
from cifar_resnet.files import atomic_write
from cifar_resnet.inference import predictor
from cifar_resnet.inference.image_reader import Chunk
from cifar_resnet.inference.predictor import softmax
from cifar_resnet.models import saved_model


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image, the likeliest first, with their probabilities; `index` counts images."""

    index: int
    file: str
    labels: list[int]
    class_names: list[str]
    confidences: list[float]


@dataclass
class Counts:
    """How many images were predicted so far, and how many inputs were skipped."""

    predicted: int = 0
    skipped: int = 0


def predict_images(
    model_folder: Path,
    chunks: Iterable[Chunk],
    counts: Counts,
    *,
    target: torch.device,
    strict: bool,
    batch_size: int,
    top: int = 1,
) -> Iterator[Prediction]:
    """Yield the prediction of every image, with test-time augmentation, and update `counts`.

    Args:
        model_folder: holds model.safetensors and model.json.
        chunks: from `read_images`; their read errors are printed on stderr.
        target: the device to compute on.
        strict: whether the first read error ends the prediction.
        top: number of classes per image.

    Raises:
        UserError: if the model cannot be used, if an image cannot be read and `strict` is set, or without any image.
    """
    model, config = saved_model.load_model(model_folder, target)
    precision, _ = select_dtype("auto", target)
    temperature = saved_model.fitted_temperature(config, augmented=True)
    for chunk in chunks:
        report_read_errors(chunk.errors, counts, strict=strict)
        logits = predictor.predict_logits(
            model, chunk.pixels, batch_size=batch_size, precision=precision, augmented=True
        )
        for name, row in zip(chunk.names, softmax(logits.numpy(), temperature), strict=True):
            labels = (-row).argsort(kind="stable")[:top].tolist()
            class_names = [config["classes"][label] for label in labels]
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
    """One row for each image; further classes are in columns class_name_2, confidence_2 and so on."""
    table = csv.writer(stream, lineterminator="\n")
    for prediction in predictions:
        best = list(zip(prediction.class_names, prediction.confidences, strict=True))
        if prediction.index == 0:
            more = [f"{key}_{rank}" for rank in range(2, len(best) + 1) for key in ("class_name", "confidence")]
            table.writerow(["index", "file", "label", "class_name", "confidence", *more])
        cells = [cell for name, confidence in best for cell in (name, f"{confidence:.6f}")]
        table.writerow([prediction.index, escape_csv_formula(prediction.file), prediction.labels[0], *cells])


def escape_csv_formula(name: str) -> str:
    """The name behind an apostrophe if a spreadsheet would take it for a formula (OWASP, "CSV Injection")."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@")) else name


def write_predictions_json(stream: TextIO, predictions: Iterable[Prediction]) -> None:
    """An array with one object a line, so that lines can be read as they come."""
    before = "[\n"
    for prediction in predictions:
        best = zip(prediction.labels, prediction.class_names, prediction.confidences, strict=True)
        classes = [{"label": label, "class_name": name, "confidence": round(share, 6)} for label, name, share in best]
        line = json.dumps({"index": prediction.index, "file": prediction.file, "classes": classes})
        stream.write(f"{before}  {line}")
        before = ",\n"
    stream.write("\n]\n")


def write_predictions_table(stream: TextIO, predictions: Iterable[Prediction]) -> None:
    for prediction in predictions:
        best = zip(prediction.class_names, prediction.confidences, strict=True)
        cells = "  ".join(f"{name:<10} {share:6.1%}" for name, share in best)
        stream.write(f"{cells}  {prediction.file}\n")


WRITERS = {"table": write_predictions_table, "csv": write_predictions_csv, "json": write_predictions_json}


def write_submission(path: Path, table: Path) -> None:
    """Write two columns of `table`, a predictions.csv, under the names that competitions use."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        submission = csv.writer(stream, lineterminator="\n")
        submission.writerow(("ID", "Labels"))
        with table.open(newline="", encoding="utf-8") as rows:
            submission.writerows((row["index"], row["label"]) for row in csv.DictReader(rows))
