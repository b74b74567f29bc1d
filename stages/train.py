"""data/prepared (train, validation) -> train -> data/model: weights, model card and history; one MLflow run."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from threading import Event

import torch

from cifar_resnet import checkpoint, distributed, hardware, images, params, product, records, recovery, resnet, tracking
from cifar_resnet.batches import Batches
from cifar_resnet.calibration import temperature
from cifar_resnet.distributed import World
from cifar_resnet.errors import run, wish_to_stop
from cifar_resnet.files import digest, read_json
from cifar_resnet.images import Images
from cifar_resnet.inference import predict
from cifar_resnet.lineage import origin, recipe, title
from cifar_resnet.params import Params
from cifar_resnet.progress import bar
from cifar_resnet.records import EpochRecord, StepRecord
from cifar_resnet.resnet import ResNet
from cifar_resnet.runs import Run
from cifar_resnet.training import fit, start

PREPARED = "data/prepared"
MODEL = "data/model"
SCRATCH = "data/scratch"
INPUTS = ("train_images.npy", "train_labels.npy", "validation_images.npy", "validation_labels.npy", "statistics.json")


def main(root: Path) -> None:
    values = params.load(root / "params.yaml")
    if values.train.processes > 1 and not distributed.launched():
        distributed.launch(values.train.processes)
        return
    hardware.keep_memory()
    with distributed.join() as world, wish_to_stop() as wish:
        train(root, values, world, wish)


def train(root: Path, values: Params, world: World, wish: Event) -> None:
    training, validation = images.read(root / PREPARED, "train"), images.read(root / PREPARED, "validation")
    statistics = read_json(root / PREPARED / "statistics.json")
    precision, why = hardware.precision(values.train.precision, hardware.device())
    state = start(values.model, values.train, training, statistics, world)
    batches = Batches(training, values.train, world)
    num_images = len(training)
    del training  # the batches hold their own copy
    moments = fit(state, batches, validation, params=values.train, precision=precision)
    if not world.leads:
        recovery.follow(moments, state, wish, world)
        return

    print(f"train: {resnet.num_parameters(state.model):,} parameters, {num_images:,} images")
    print(f"train: {hardware.name(precision)} on {hardware.device().type}, because {why}", flush=True)
    data = {name: digest(root / PREPARED / name) for name in INPUTS}
    source, text = origin(root), (root / "params.yaml").read_text(encoding="utf-8")
    name, again = title(root, text) or params.summary(values), recipe(root, source.get("git_commit", ""), text)
    scratch = scratch_folder(root, values, data, hardware.name(precision), world)
    with (
        checkpoint.claimed(scratch, minutes=values.checkpoint.minutes) as saved,
        tracking.training_run(root, name, scratch, values.tracking, alive=checkpoint.is_claimed) as tracked,
    ):
        tracked.params({"model": values.model.model_dump(), "train": values.train.model_dump()})
        tracked.dataset("CIFAR-10 train", data["train_images.npy"], statistics["source"])
        history = recovery.resume(state, saved, world)
        guarded = recovery.guarded(moments, state, history, saved, values.checkpoint, wish, world)
        watch(guarded, history, values.train.epochs, tracked)

        seconds = round(sum(record.seconds for record in history), 1)
        fitted = temperatures(state.product, validation, batches.batch_size, precision)
        card = product.card(values.model, statistics, fitted)
        found = {"mlflow_run": tracked.id, "train_data": data["train_images.npy"], "seconds": seconds}
        provenance = {**found, **source, **hardware.facts(precision)}
        product.save(root / MODEL, state.product, card | {"provenance": provenance})
        records.write(root / MODEL / "history.csv", history)
        tracked.artifact(root / MODEL / "history.csv")
        tracked.trained(history, again)
        tracked.tags({"train_data": data["train_images.npy"], "model": digest(root / MODEL / product.WEIGHTS)})
        saved.remove()
    print(f"train: {seconds / 60:.1f} min, {hardware.peak_memory_gb():.1f} GB at the peak -> {MODEL}")


def temperatures(model: ResNet, validation: Images, batch_size: int, precision: torch.dtype) -> dict[str, float]:
    """What divides the logits without and with test-time augmentation, each fitted on the hold-out."""
    fitted = {}
    for name, augmented in (("temperature", False), ("temperature_tta", True)):
        logits = predict(model, validation.pixels, batch_size=batch_size, precision=precision, augmented=augmented)
        fitted[name] = temperature(logits.numpy(), validation.labels)
    return fitted


def scratch_folder(root: Path, values: Params, data: dict[str, str], precision: str, world: World) -> Path:
    """Where this training keeps its state: named by all that decides its result, below the project's root in
    `dvc exp run --temp` too."""
    loaded = {name: module.__file__ for name, module in sys.modules.items() if name.startswith("cifar_resnet.")}
    code = {name: digest(Path(file)) for name, file in loaded.items() if file} | {"stage": digest(Path(__file__))}
    sections = (values.model.model_dump(), values.train.model_dump())
    key = checkpoint.fingerprint(*sections, data, code, precision, world.size, torch.__version__)
    return Path(os.environ.get("DVC_ROOT", root)).resolve() / SCRATCH / key


def watch(moments: Iterable[StepRecord | EpochRecord], history: list[EpochRecord], epochs: int, tracked: Run) -> None:
    """Show and log what happens, after what happened before an interruption."""
    for before in history:
        tracked.epoch(before.metrics(), before.epoch)
    with bar("train", epochs) as watched:
        for record in moments:
            tracked.sample()
            if isinstance(record, StepRecord):
                watched.at(record.epoch - 1 + record.step / record.steps, record.line(epochs))
            else:
                watched.say(record.line(epochs))
                tracked.epoch(record.metrics(), record.epoch)


if __name__ == "__main__":
    run(main)
