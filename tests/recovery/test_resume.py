"""An interrupted and resumed training in one process; tests/faults/test_faults.py kills real trainings."""

from itertools import islice
from pathlib import Path
from threading import Event

import pytest
import torch
from conftest import tiny_images, tiny_params

from cifar_resnet.models import resnet
from cifar_resnet.recovery import resume
from cifar_resnet.recovery.checkpoint import Checkpoint
from cifar_resnet.training.distributed import World
from cifar_resnet.training.history import EpochRecord
from cifar_resnet.training.loader import BatchLoader
from cifar_resnet.training.loop import TrainState, fit

TRAIN, VALIDATION = tiny_images(6, seed=0), tiny_images(2, seed=1)
PARAMS = tiny_params(
    train={"warmup_epochs": 0.5, "cutout": 4, "trivial_augment_probability": 0.5, "sam_rho": 0.1},
    checkpoint={"minutes": 1e-9},
)
NUM_RECORDS = 3 * (3 + 1)  # three epochs, each with three steps and an end


def train(folder: Path, optimizer: str, num_records: int = NUM_RECORDS) -> tuple[TrainState, list[EpochRecord]]:
    """Train from the state saved in `folder`, up to the end or, as if killed, for some records."""
    params = PARAMS.train.model_copy(update={"optimizer": optimizer})
    torch.manual_seed(0)
    model = resnet.build_model(PARAMS.model, [0.5] * 3, [0.25] * 3, num_classes=10)
    state, checkpoint = TrainState(model, params), Checkpoint(folder, minutes=1e-9)
    history = resume.resume(state, checkpoint, World())
    records = fit(state, BatchLoader(TRAIN, params, World()), VALIDATION, params=params, precision=torch.float32)
    records = resume.checkpointed(records, state, history, checkpoint, PARAMS.checkpoint, Event(), World())
    for _ in islice(records, num_records):
        pass
    return state, history


def results(state: TrainState, history: list[EpochRecord]) -> tuple[dict[str, bytes], list[dict[str, float]]]:
    """The weights as bytes, and the records without the measured times."""
    clocks = {"seconds", "images_per_second"}
    rows = [{key: value for key, value in record.metrics().items() if key not in clocks} for record in history]
    return {key: value.numpy().tobytes() for key, value in state.ema.state_dict().items()}, rows


@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
def test_a_training_resumed_after_any_step_or_epoch_ends_with_the_same_bytes(tmp_path: Path, optimizer: str) -> None:
    (tmp_path / "uninterrupted").mkdir()
    uninterrupted = results(*train(tmp_path / "uninterrupted", optimizer))
    for num_records in range(1, NUM_RECORDS):
        folder = tmp_path / str(num_records)
        folder.mkdir()
        train(folder, optimizer, num_records)
        assert results(*train(folder, optimizer)) == uninterrupted, num_records


def test_the_stop_event_ends_training_after_the_step_and_saves_the_state(tmp_path: Path) -> None:
    params, stop_event = PARAMS.train, Event()
    torch.manual_seed(0)
    state = TrainState(resnet.build_model(PARAMS.model, [0.5] * 3, [0.25] * 3, num_classes=10), params)
    checkpoint = Checkpoint(tmp_path, minutes=10)
    records = fit(state, BatchLoader(TRAIN, params, World()), VALIDATION, params=params, precision=torch.float32)
    records = resume.checkpointed(records, state, [], checkpoint, PARAMS.checkpoint, stop_event, World())
    for _ in range(6):
        next(records)
    stop_event.set()
    with pytest.raises(KeyboardInterrupt, match="the state after epoch 1 and step 2 of the next is saved"):
        next(records)
    saved, _ = checkpoint.load()
    assert saved is not None
    assert saved["state"]["progress"][0] == 1
