"""data/prepared (train, validation) -> train -> data/model: weights, config and history; one MLflow run."""

from pathlib import Path
from threading import Event

import torch

import cifar_resnet.environment  # noqa: F401
from cifar_resnet.data.dataset import read_split
from cifar_resnet.device import (
    disable_malloc_trim,
    dtype_name,
    environment_info,
    peak_memory_gb,
    select_device,
    select_dtype,
)
from cifar_resnet.errors import run, stop_on_signal
from cifar_resnet.files import file_hash, read_json
from cifar_resnet.inference.calibration import fit_temperatures
from cifar_resnet.models.resnet import num_parameters
from cifar_resnet.models.saved_model import WEIGHTS_FILE, model_config, save_model
from cifar_resnet.params.file import Params, load_params
from cifar_resnet.recovery.checkpoint import is_locked, lock_folder, training_folder
from cifar_resnet.recovery.resume import checkpointed, resume, run_follower
from cifar_resnet.tracking.client import training_run
from cifar_resnet.tracking.run import follow_training
from cifar_resnet.training.distributed import World, is_worker, join_world, launch_workers
from cifar_resnet.training.history import write_history
from cifar_resnet.training.loader import BatchLoader
from cifar_resnet.training.loop import fit, init_train_state
from cifar_resnet.versioning.provenance import describe_training

PREPARED = "data/prepared"
MODEL = "data/model"
INPUTS = ("train_images.npy", "train_labels.npy", "validation_images.npy", "validation_labels.npy", "statistics.json")


def main(root: Path) -> None:
    params = load_params(root / "params.yaml")
    if params.train.processes > 1 and not is_worker():
        launch_workers(params.train.processes)
        return
    disable_malloc_trim()
    target = select_device(params.train.device)
    with join_world(target) as world, stop_on_signal() as stop_event:
        train(root, params, target, world, stop_event)


def train(root: Path, params: Params, target: torch.device, world: World, stop_event: Event) -> None:
    training, validation = read_split(root / PREPARED, "train"), read_split(root / PREPARED, "validation")
    statistics = read_json(root / PREPARED / "statistics.json")
    precision, reason = select_dtype(params.train.precision, target)
    state = init_train_state(params.model, params.train, training, statistics, target=target, world=world)
    loader, num_images = BatchLoader(training, params.train, world), len(training)
    del training  # the loader has its own copy
    records = fit(state, loader, validation, params=params.train, precision=precision)
    if not world.is_main:
        run_follower(records, state, stop_event, world)
        return

    print(f"train: {num_parameters(state.model):,} parameters, {num_images:,} images")
    print(f"train: {dtype_name(precision)} on {target.type}, because {reason}", flush=True)
    sections = {"model": params.model.model_dump(), "train": params.train.model_dump()}
    hashes = {name: file_hash(root / PREPARED / name) for name in INPUTS}
    source = describe_training(root, params)
    folder = training_folder(root, sections, hashes, dtype_name(precision), world.size)
    with (
        lock_folder(folder, minutes=params.checkpoint.minutes) as checkpoint,
        training_run(root, source.name, folder, params.tracking, is_active=is_locked) as tracked,
    ):
        tracked.log_params(sections)
        tracked.log_input("CIFAR-10 train", hashes["train_images.npy"], statistics["source"])
        history = resume(state, checkpoint, world)
        records = checkpointed(records, state, history, checkpoint, params.checkpoint, stop_event, world)
        follow_training(records, history, params.train.epochs, tracked)

        model, train_data = state.ema_model, hashes["train_images.npy"]
        temperatures = fit_temperatures(model, validation, batch_size=loader.batch_size, precision=precision)
        seconds = round(sum(record.seconds for record in history), 1)
        origin = {"mlflow_run": tracked.id, "train_data": train_data, "seconds": seconds}
        provenance = {**origin, **source.tags, **environment_info(precision)}
        config = model_config(params.model, statistics, temperatures) | {"provenance": provenance}
        save_model(root / MODEL, model, config)
        write_history(root / MODEL / "history.csv", history)
        tracked.log_artifact(root / MODEL / "history.csv")
        tracked.log_training_summary(history, source.reproduce)
        tracked.set_tags({"train_data": train_data, "model": file_hash(root / MODEL / WEIGHTS_FILE)})
        checkpoint.remove()
    print(f"train: {seconds / 60:.1f} min, peak memory {peak_memory_gb():.1f} GB -> {MODEL}")


if __name__ == "__main__":
    run(main)
