"""Labels and probabilities of a stream of images, and how they are written: as CSV, JSON or a table for people."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from cifar_resnet import hardware, inference, product
from cifar_resnet.errors import UserError
from cifar_resnet.inputs import Chunk
from cifar_resnet.metrics import softmax


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image, the likeliest first, with their probabilities; `index` counts images."""

    index: int
    file: str
    labels: list[int]
    class_names: list[str]
    confidences: list[float]


@dataclass
class Tally:
    """How many images were predicted so far, and how many inputs left out."""

    predicted: int = 0
    skipped: int = 0


def predict(
    model_folder: Path, chunks: Iterable[Chunk], tally: Tally, *, strict: bool, batch_size: int, top: int = 1
) -> Iterator[Prediction]:
    """Yield the prediction of every image, with test-time augmentation; `tally` is kept up to date.

    Args:
        model_folder: holds model.safetensors and model.json.
        chunks: from `inputs.read`; their refusals are printed on stderr.
        strict: whether the first refusal is an error.
        top: how many classes of each image to tell.

    Raises:
        UserError: if the model cannot be used, if `strict` and something was refused, or if there was no image.
    """
    device = hardware.device()
    model, card = product.load(model_folder, device)
    precision, _ = hardware.precision("auto", device)
    temperature = product.temperature(card, augmented=True)
    for chunk in chunks:
        report(chunk.refused, tally, strict=strict)
        logits = inference.predict(model, chunk.pixels, batch_size=batch_size, precision=precision, augmented=True)
        for name, row in zip(chunk.names, softmax(logits.numpy(), temperature), strict=True):
            labels = (-row).argsort(kind="stable")[:top].tolist()
            class_names = [card["classes"][label] for label in labels]
            yield Prediction(tally.predicted, name, labels, class_names, [float(row[label]) for label in labels])
            tally.predicted += 1
    if tally.predicted == 0:
        raise UserError("there is no image to predict")


def report(refused: list[str], tally: Tally, *, strict: bool) -> None:
    if refused and strict:
        raise UserError(refused[0])
    for message in refused:
        print(f"left out: {message}", file=sys.stderr)
    tally.skipped += len(refused)


def write_csv(stream: TextIO, predictions: Iterable[Prediction]) -> None:
    """One row for each image; further classes are in columns class_name_2, confidence_2 and so on."""
    table = csv.writer(stream, lineterminator="\n")
    for prediction in predictions:
        best = list(zip(prediction.class_names, prediction.confidences, strict=True))
        if prediction.index == 0:
            more = [f"{key}_{rank}" for rank in range(2, len(best) + 1) for key in ("class_name", "confidence")]
            table.writerow(["index", "file", "label", "class_name", "confidence", *more])
        cells = [cell for name, confidence in best for cell in (name, f"{confidence:.6f}")]
        table.writerow([prediction.index, harmless(prediction.file), prediction.labels[0], *cells])


def harmless(name: str) -> str:
    """The name behind an apostrophe if a spreadsheet would take it for a formula (OWASP, "CSV Injection")."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@")) else name


def write_json(stream: TextIO, predictions: Iterable[Prediction]) -> None:
    """An array with one object a line, so that lines can be read as they come."""
    before = "[\n"
    for prediction in predictions:
        best = zip(prediction.labels, prediction.class_names, prediction.confidences, strict=True)
        classes = [{"label": label, "class_name": name, "confidence": round(share, 6)} for label, name, share in best]
        line = json.dumps({"index": prediction.index, "file": prediction.file, "classes": classes})
        stream.write(f"{before}  {line}")
        before = ",\n"
    stream.write("\n]\n")


def write_table(stream: TextIO, predictions: Iterable[Prediction]) -> None:
    for prediction in predictions:
        best = zip(prediction.class_names, prediction.confidences, strict=True)
        cells = "  ".join(f"{name:<10} {share:6.1%}" for name, share in best)
        stream.write(f"{cells}  {prediction.file}\n")


WRITERS = {"table": write_table, "csv": write_csv, "json": write_json}
