"""Metrics of a training step and of an epoch, and history.csv, the table of all epochs."""

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cifar_resnet.errors import UserError
from cifar_resnet.files import atomic_write, read_rows


@dataclass(frozen=True)
class StepRecord:
    """A finished step: `epoch` and `step` count from 1, `steps` is their number per epoch, `loss` is the batch's."""

    epoch: int
    step: int
    steps: int
    loss: float

    def line(self, epochs: int) -> str:
        """A line for the terminal; `epochs` is the number of all epochs."""
        return f"epoch {self.epoch}/{epochs}  loss {self.loss:.3f}"


@dataclass(frozen=True)
class EpochRecord:
    """One row of history.csv.

    Losses are mean cross-entropies in nats. The training loss includes augmentation and label smoothing, the validation
    loss neither. Accuracies are 0 to 1. Without validation images, the validation
    columns are empty.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    learning_rate: float
    seconds: float
    images_per_second: float

    def line(self, epochs: int) -> str:
        """A line for the terminal; `epochs` is the number of all epochs."""
        held_out = "none" if self.validation_accuracy is None else f"{self.validation_accuracy:.2%}"
        return (
            f"epoch {self.epoch:>{len(str(epochs))}}/{epochs}  train loss {self.train_loss:.3f}  "
            f"accuracy {self.train_accuracy:.2%}  validation {held_out}  {self.seconds:.0f} s"
        )

    def metrics(self) -> dict[str, float]:
        """All columns with a value, except the epoch."""
        return {name: value for name, value in asdict(self).items() if name != "epoch" and value is not None}


def write_history(path: Path, records: Iterable[EpochRecord]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, [field.name for field in fields(EpochRecord)], lineterminator="\n")
        table.writeheader()
        for record in records:
            table.writerow({k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(record).items()})


def read_history(path: Path) -> list[EpochRecord]:
    """Read what `write_history` has written.

    Raises:
        UserError: if the file is missing or damaged.
    """
    rows = read_rows(path, *(field.name for field in fields(EpochRecord)))
    try:
        return [
            EpochRecord(epoch=int(row.pop("epoch")), **{k: float(v) if v else None for k, v in row.items()})  # type: ignore[arg-type]
            for row in rows
        ]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); run `dvc repro train` to write it again") from None
