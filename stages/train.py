"""data/prepared (train, validation) -> train -> data/model: weights, model card and history; one MLflow run."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from cifar_resnet import hardware, images, params, product, records, resnet, tracking
from cifar_resnet.batches import Batches
from cifar_resnet.errors import run
from cifar_resnet.files import digest, read_json
from cifar_resnet.progress import Bar, bar
from cifar_resnet.training import TrainState, fit

PREPARED = "data/prepared"
MODEL = "data/model"
WHITENING_IMAGES = 5_000


def main(root: Path) -> None:
    hardware.keep_memory()
    values = params.load(root / "params.yaml")
    train, validation = images.read(root / PREPARED, "train"), images.read(root / PREPARED, "validation")
    statistics = read_json(root / PREPARED / "statistics.json")
    device = hardware.device()
    precision, why = hardware.precision(values.train.precision, device)

    torch.manual_seed(values.train.seed)
    model = resnet.build(values.model, statistics["channel_mean"], statistics["channel_deviation"])
    resnet.whiten(model, torch.from_numpy(train.pixels[:WHITENING_IMAGES]))
    state = TrainState(model.to(device), values.train)
    print(f"train: {resnet.num_parameters(model):,} parameters, {len(train):,} images", flush=True)
    print(f"train: {hardware.name(precision)} on {device.type}, because {why}", flush=True)

    train_data = digest(root / PREPARED / "train_images.npy")
    with tracking.training_run(root, params.summary(values)) as tracked:
        tracked.params({"model": values.model.model_dump(), "train": values.train.model_dump()})
        tracked.dataset("CIFAR-10 train", train_data, statistics["source"])
        history = []
        with bar("train", values.train.epochs) as watched:
            batches = WatchedBatches(train, values.train, watched)
            for record in fit(state, batches, validation, params=values.train, precision=precision):
                history.append(record)
                watched.say(record.line(values.train.epochs))
                tracked.metrics(record.metrics(), step=record.epoch)

        seconds = round(sum(record.seconds for record in history), 1)
        found = {"mlflow_run": tracked.id, "train_data": train_data, "seconds": seconds}
        provenance = {**found, **tracking.origin(root), **hardware.facts(precision)}
        product.save(root / MODEL, state.product, product.card(values.model, statistics, provenance))
        records.write(root / MODEL / "history.csv", history)
        tracked.artifact(root / MODEL / "history.csv")
        tracked.tags({"train_data": train_data, "model": digest(root / MODEL / product.WEIGHTS)})
    print(f"train: {seconds / 60:.1f} min, {hardware.peak_memory_gb():.1f} GB at the peak -> {MODEL}")


class WatchedBatches(Batches):
    """Batches that move a bar, in epochs, as they are drawn."""

    def __init__(self, train: images.Images, values: params.TrainParams, watched: Bar) -> None:
        super().__init__(train, values)
        self.watched = watched

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step, batch in enumerate(super().epoch(epoch)):
            self.watched.at(epoch + step / len(self))
            yield batch


if __name__ == "__main__":
    run(main)
