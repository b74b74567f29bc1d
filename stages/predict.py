"""data/model + images without labels -> predict -> data/predictions: predictions.csv and submission.csv."""

import csv
from pathlib import Path

from cifar_resnet import hardware, inputs, params, predictions
from cifar_resnet.errors import run
from cifar_resnet.files import whole

MODEL = "data/model"
PREDICTIONS = "data/predictions"


def main(root: Path) -> None:
    hardware.keep_memory()
    values = params.load(root / "params.yaml").predict
    chunks, tally = inputs.read([values.input], root, batch_size=values.batch_size), predictions.Tally()
    found = predictions.predict(root / MODEL, chunks, tally, strict=values.strict, batch_size=values.batch_size)
    table = root / PREDICTIONS / "predictions.csv"
    with whole(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        predictions.write_csv(stream, found)
    write_submission(root / PREDICTIONS / "submission.csv", table)
    left_out = f", {tally.skipped:,} left out" if tally.skipped else ""
    print(f"predict: {tally.predicted:,} images from {values.input}{left_out} -> {PREDICTIONS}/predictions.csv, "
          "submission.csv")  # fmt: skip


def write_submission(path: Path, table: Path) -> None:
    """Two columns of `table`, under the names that competitions use."""
    with whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        submission = csv.writer(stream, lineterminator="\n")
        submission.writerow(("ID", "Labels"))
        with table.open(newline="", encoding="utf-8") as rows:
            submission.writerows((row["index"], row["label"]) for row in csv.DictReader(rows))


if __name__ == "__main__":
    run(main)
