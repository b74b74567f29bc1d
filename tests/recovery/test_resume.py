"""Training broken off and taken up again, in one process; tests/test_faults.py kills real ones."""

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
MOMENTS = 3 * (3 + 1)  # epochs of three steps and an end


def run(folder: Path, optimizer: str, stop_after: int = MOMENTS) -> tuple[TrainState, list[EpochRecord]]:
    """Train from where the folder's state stands, to the end or to the death of the process after some moments."""
    params = PARAMS.train.model_copy(update={"optimizer": optimizer})
    torch.manual_seed(0)
    model = resnet.build_model(PARAMS.model, [0.5] * 3, [0.25] * 3)
    state, saved = TrainState(model, params), Checkpoint(folder, minutes=1e-9)
    history = resume.resume(state, saved, World())
    moments = fit(state, BatchLoader(TRAIN, params, World()), VALIDATION, params=params, precision=torch.float32)
    guarded = resume.checkpointed(moments, state, history, saved, PARAMS.checkpoint, Event(), World())
    for _ in islice(guarded, stop_after):
        pass
    return state, history


def results(state: TrainState, history: list[EpochRecord]) -> tuple[dict[str, bytes], list[dict[str, float]]]:
    """Weights as bytes, and the records but for wall-clock columns."""
    clocks = {"seconds", "images_per_second"}
    rows = [{key: value for key, value in record.metrics().items() if key not in clocks} for record in history]
    return {key: value.numpy().tobytes() for key, value in state.ema.state_dict().items()}, rows


@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
def test_broken_off_after_any_step_or_epoch_it_ends_as_unbroken_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    (tmp_path / "unbroken").mkdir()
    unbroken = results(*run(tmp_path / "unbroken", optimizer))
    for moment in range(1, MOMENTS):
        folder = tmp_path / str(moment)
        folder.mkdir()
        run(folder, optimizer, stop_after=moment)
        assert results(*run(folder, optimizer)) == unbroken, moment


def test_a_wish_to_stop_is_granted_after_the_step_with_the_state_saved(tmp_path: Path) -> None:
    params, wish = PARAMS.train, Event()
    torch.manual_seed(0)
    state = TrainState(resnet.build_model(PARAMS.model, [0.5] * 3, [0.25] * 3), params)
    saved = Checkpoint(tmp_path, minutes=10)
    moments = fit(state, BatchLoader(TRAIN, params, World()), VALIDATION, params=params, precision=torch.float32)
    guarded = resume.checkpointed(moments, state, [], saved, PARAMS.checkpoint, wish, World())
    for _ in range(6):
        next(guarded)
    wish.set()
    with pytest.raises(KeyboardInterrupt, match="the state after epoch 1 and 2 steps of the next is saved"):
        next(guarded)
    kept, _ = saved.load()
    assert kept is not None
    assert kept["state"]["progress"][0] == 1
