"""Two processes compute the same as one: same images, same gradients, equal weights."""

import os
import socket
from pathlib import Path

import pytest
import torch
from conftest import tiny_images, tiny_params
from torch import nn

from cifar_resnet.models import resnet
from cifar_resnet.params.schema import TrainParams
from cifar_resnet.training import distributed
from cifar_resnet.training.distributed import World
from cifar_resnet.training.loader import BatchLoader
from cifar_resnet.training.loop import TrainState, train_step

TRAIN = tiny_images(6, seed=0)
PARAMS = tiny_params(
    train={"batch_size": 24, "cutout": 4, "trivial_augment_probability": 0.5, "noise_probability": 0.5, "sam_rho": 0.1}
)


def test_the_shards_of_a_batch_add_up_to_the_batch() -> None:
    single = BatchLoader(TRAIN, PARAMS.train, World())
    loaders = [BatchLoader(TRAIN, PARAMS.train, World(rank, 2)) for rank in range(2)]
    for batch, *shards in zip(single.epoch(0), *(loader.epoch(0) for loader in loaders), strict=True):
        for part in range(2):  # images, labels
            assert torch.equal(batch[part], torch.cat([shard[part] for shard in shards]))


def test_a_world_of_one_changes_nothing() -> None:
    tensor = torch.ones(3)
    World().all_reduce_mean([tensor])
    model = nn.BatchNorm2d(3)
    distributed.convert_sync_batch_norm(model, World())
    assert torch.equal(tensor, torch.ones(3))
    assert (World().any_process(True), World().broadcast("value"), type(model)) == (True, "value", nn.BatchNorm2d)
    with distributed.join_world(torch.device("cpu")) as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)


def start(params: TrainParams, world: World) -> tuple[TrainState, BatchLoader]:
    torch.manual_seed(0)
    model = resnet.build_model(PARAMS.model, [0.5] * 3, [0.25] * 3, num_classes=10)
    if params.sync_batch_norm:
        distributed.convert_sync_batch_norm(model, world)
    return TrainState(model, params), BatchLoader(TRAIN, params, world)


def first_step(state: TrainState, loader: BatchLoader, world: World) -> dict[str, torch.Tensor]:
    """Loss, accuracy, gradients and running statistics of the first step."""
    images, labels = next(iter(loader.epoch(0)))
    loss, accuracy = train_step(state, images, labels, PARAMS.train, torch.float32, world)
    tensors = {"loss": torch.tensor(loss), "accuracy": torch.tensor(accuracy)}
    tensors |= {f"gradient of {name}": p.grad for name, p in state.model.named_parameters() if p.grad is not None}
    tensors |= {name: value for name, value in state.model.named_buffers() if name.endswith(("_mean", "_var"))}
    return {name: value.clone() for name, value in tensors.items()}


def run_worker(rank: int, port: int, folder: Path, sync_batch_norm: bool) -> None:
    """One of two workers, in the environment that torchrun sets."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    params = PARAMS.train.model_copy(update={"sync_batch_norm": sync_batch_norm})
    with distributed.join_world(torch.device("cpu")) as world:
        state, loader = start(params, world)
        tensors = first_step(state, loader, world)
        for images, labels in loader.epoch(1):
            train_step(state, images, labels, PARAMS.train, torch.float32, world)
        weights = {f"weights {name}": p.detach() for name, p in state.model.named_parameters()}
        messages = {"any": torch.tensor(world.any_process(rank == 1)), "none": torch.tensor(world.any_process(False))}
        messages["main"] = torch.tensor(world.broadcast(7 if world.is_main else None))
        torch.save(tensors | weights | messages, folder / f"{rank}.pt")


def two_workers(folder: Path, *, sync_batch_norm: bool) -> list[dict[str, torch.Tensor]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(run_worker, (port, folder, sync_batch_norm), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.filterwarnings("ignore")  # torch's own, in the workers
def test_two_workers_compute_the_same_step_as_one(tmp_path: Path) -> None:
    first, second = two_workers(tmp_path, sync_batch_norm=True)
    single = first_step(*start(PARAMS.train, World()), World())
    for name, value in single.items():
        # float32 sums in another order; observed 2e-6 of the largest entry
        assert (first[name] - value).abs().max() <= 1e-4 * value.abs().max().clamp(min=1e-3), name
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert (first["any"], first["none"], first["main"]) == (True, False, 7)


@pytest.mark.filterwarnings("ignore")
def test_without_sync_batch_norm_workers_have_equal_weights_but_own_statistics(tmp_path: Path) -> None:
    first, second = two_workers(tmp_path, sync_batch_norm=False)
    for name, value in first.items():
        if not name.endswith(("_mean", "_var")):
            assert torch.equal(value, second[name]), name
    name = "layers.0.2.running_mean"
    assert not torch.equal(first[name], second[name]), (
        "each shard has its own statistics; those of the main process are saved"
    )
