"""data/prepared (train, validation) -> train -> data/model: weights, model card and history; one MLflow run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cifar_resnet import hardware, images, params, product, records, resnet, tracking
from cifar_resnet.batches import Batches
from cifar_resnet.errors import run
from cifar_resnet.files import digest, read_json
from cifar_resnet.params import Params
from cifar_resnet.progress import Bar, bar
from cifar_resnet.training import TrainState, fit

PREPARED = "data/prepared"
MODEL = "data/model"
WHITENING_IMAGES = 5_000


class WatchedBatches(Batches):
    """Batches that move a bar as they are drawn."""

    bar: Bar

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step, batch in enumerate(super().epoch(epoch)):
            self.bar.at(epoch * len(self) + step)
            yield batch


def main(root: Path) -> None:
    hardware.keep_memory()
    values = params.load(root / "params.yaml")
    train, validation = images.read(root / PREPARED, "train"), images.read(root / PREPARED, "validation")
    statistics = read_json(root / PREPARED / "statistics.json")
    mean, deviation = statistics["channel_mean"], statistics["channel_deviation"]
    device = hardware.device()
    precision, why = hardware.precision(values.train.precision, device)

    torch.manual_seed(values.train.seed)
    model = resnet.build(values.model, mean, deviation)
    resnet.whiten(model, torch.from_numpy(train.pixels[:WHITENING_IMAGES]))
    batches = WatchedBatches(train, values.train)
    state = TrainState(model.to(device), values.train)
    history: list[records.EpochRecord] = []
    with tracking.training_run(root, run_name(values)) as tracked, bar("train", values.train.epochs * len(batches)) as batches.bar:  # fmt: skip
        print(f"train: {resnet.num_parameters(model):,} parameters on {len(train):,} images, "
              f"{str(precision).removeprefix('torch.')} on {device.type} ({why})", flush=True)  # fmt: skip
        tracked.params({"model": values.model.model_dump(), "train": values.train.model_dump()})
        tracked.dataset("CIFAR-10 train", digest(root / PREPARED / "train_images.npy")[:32], statistics["source"])
        for record in fit(state, batches, validation, params=values.train, precision=precision):
            history.append(record)
            tracked.metrics(record.metrics(), step=record.epoch)
            batches.bar.say(line(record, values.train.epochs))
        card = {
            "architecture": values.model.model_dump(),
            "normalisation": {"mean": mean, "deviation": deviation},
            "classes": statistics["classes"],
            "input": "uint8 RGB (N, 3, 32, 32), values 0 to 255",
            "provenance": provenance(root, tracked.id, precision, history),
        }
        product.save(root / MODEL, state.product, card)
        records.write(root / MODEL / "history.csv", history)
        tracked.artifact(root / MODEL / "history.csv")
        tracked.tags({"data": card["provenance"]["train_data"], "model": digest(root / MODEL / product.WEIGHTS)})
    seconds = card["provenance"]["seconds"]
    print(f"train: done in {seconds / 60:.1f} min, {card['provenance']['peak_memory_gb']:.1f} GB at the peak -> {MODEL}")


def run_name(values: Params) -> str:
    widths = "-".join(str(width) for width in values.model.channels)
    return f"{widths} {values.train.epochs} epochs seed {values.train.seed}"


def line(record: records.EpochRecord, epochs: int) -> str:
    held_out = f"{record.validation_accuracy:.2%}" if record.validation_accuracy is not None else "none"
    return (
        f"epoch {record.epoch:>{len(str(epochs))}}/{epochs}  train loss {record.train_loss:.3f}  "
        f"accuracy {record.train_accuracy:.2%}  validation {held_out}  {record.seconds:.0f} s"
    )


def provenance(root: Path, run_id: str, precision: torch.dtype, history: list[records.EpochRecord]) -> dict[str, Any]:
    return {
        **tracking.origin(root),
        "mlflow_run": run_id,
        "train_data": digest(root / PREPARED / "train_images.npy"),
        "torch": str(torch.__version__),
        "cpu": hardware.cpu_name(),
        "threads": torch.get_num_threads(),
        "precision": str(precision).removeprefix("torch."),
        "seconds": round(sum(record.seconds for record in history), 1),
        "peak_memory_gb": round(hardware.peak_memory_gb(), 2),
    }


if __name__ == "__main__":
    run(main)
