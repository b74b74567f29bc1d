"""data/prepared (train, validation) -> train -> data/model: weights, config and history; one MLflow run."""

from pathlib import Path
from threading import Event

import cifar_resnet.environment_variables  # noqa: F401
from cifar_resnet.data.dataset import read_split
from cifar_resnet.device import (
    disable_malloc_trim,
    dtype_name,
    environment_info,
    peak_memory_gb,
    report_out_of_memory,
    select_device,
    select_dtype,
)
from cifar_resnet.errors import run, stop_on_signal
from cifar_resnet.files import file_hash, read_object
from cifar_resnet.inference import pretrained
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
from cifar_resnet.training.initial_weights import RANDOM, load_initial_weights
from cifar_resnet.training.loader import BatchLoader
from cifar_resnet.training.loop import fit, init_train_state
from cifar_resnet.versioning.inputs import read_inputs, require_unchanged
from cifar_resnet.versioning.provenance import describe_training
from cifar_resnet.versioning.temporary_copy import require_tracked

PREPARED = "data/prepared"
MODEL = "data/model"
INPUTS = ("train_images.npy", "train_labels.npy", "validation_images.npy", "validation_labels.npy", "statistics.json")


def main(root: Path) -> None:
    params = load_params(root / "params.yaml")
    if params.train.processes > 1 and not is_worker():
        launch_workers(params.train.processes)
        return
    require_tracked(root, "predict.input", params.predict.input)  # predict would find out after the training
    if params.train.init not in (RANDOM, pretrained.NAME):
        require_tracked(root, "train.init", params.train.init)
    disable_malloc_trim()
    target = select_device(params.train.device)
    out_of_memory = report_out_of_memory("lower train.batch_size, or set train.device to cpu")
    with join_world(target) as world, stop_on_signal() as stop_event, out_of_memory:
        train(root, params, world, stop_event)


def train(root: Path, params: Params, world: World, stop_event: Event) -> None:
    inputs = read_inputs(root, "train")
    train_set, validation_set = (read_split(root / PREPARED, name) for name in ("train", "validation"))
    initial = load_initial_weights(root, params.train.init, params.model)
    statistics = read_object(root / PREPARED / "statistics.json", "channel_mean", "channel_std", "classes", "source")
    statistics |= initial.channel_statistics if initial else {}
    precision, reason = select_dtype(params.train.precision, world.device)
    state = init_train_state(params.model, params.train, train_set, statistics, world=world, initial=initial)
    loader, num_images = BatchLoader(train_set, params.train, world), len(train_set)
    del train_set  # the loader has its own copy
    # A generator: the training starts when its first record is read.
    records = fit(state, loader, validation_set, params=params.train, precision=precision)
    if not world.is_main:
        run_follower(records, state, stop_event, world)
        return

    print(f"train: {num_parameters(state.model):,} parameters, {num_images:,} images")
    print(f"train: {dtype_name(precision)} on {world.device.type}, because {reason}", flush=True)
    sections = {"model": params.model.model_dump(), "train": params.train.model_dump()}
    hashes = {name: file_hash(root / PREPARED / name) for name in INPUTS}
    train_data = hashes["train_images.npy"]
    init_info = {"init": initial.name, "init_weights": initial.weights_md5} if initial else {}
    source = describe_training(root, params)
    state_folder = training_folder(root, sections, hashes, init_info, dtype_name(precision), world.size)
    with (
        lock_folder(state_folder, minutes=params.checkpoint.minutes) as checkpoint,
        training_run(root, source.name, state_folder, params.tracking, is_active=is_locked) as mlflow_run,
    ):
        mlflow_run.log_params(sections)
        mlflow_run.log_train_data(statistics["source"], train_data)
        history = resume(state, checkpoint, world)
        records = checkpointed(records, state, history, checkpoint, params.checkpoint, stop_event, world)
        follow_training(records, history, params.train.epochs, mlflow_run)

        model = state.ema_model
        temperatures = fit_temperatures(model, validation_set, batch_size=loader.batch_size, precision=precision)
        seconds = round(sum(record.seconds for record in history), 1)
        training_info = {"mlflow_run": mlflow_run.id, "train_data": train_data, "seconds": seconds}
        require_unchanged(root, "train", inputs)
        provenance = {**training_info, **init_info, **source.tags, **environment_info(precision)}
        config = model_config(params.model, statistics, temperatures, mirror_views=model.mirror_views)
        save_model(root / MODEL, model, config | {"provenance": provenance})
        write_history(root / MODEL / "history.csv", history)
        mlflow_run.log_artifact(root / MODEL / "history.csv")
        mlflow_run.log_training_summary(history, source.reproduce)
        mlflow_run.set_tags({"train_data": train_data, "model": file_hash(root / MODEL / WEIGHTS_FILE)})
        checkpoint.remove()
    print(f"train: {seconds / 60:.1f} min, peak memory {peak_memory_gb():.1f} GB -> {MODEL}")


if __name__ == "__main__":
    run(main)
