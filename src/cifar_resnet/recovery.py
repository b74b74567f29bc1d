"""A training that survives: its state is saved while it runs and taken up again at the next start."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from threading import Event

from cifar_resnet.checkpoint import Checkpoint
from cifar_resnet.distributed import World
from cifar_resnet.params import CheckpointParams
from cifar_resnet.records import EpochRecord, StepRecord
from cifar_resnet.training import TrainState


def resume(state: TrainState, saved: Checkpoint | None, world: World) -> list[EpochRecord]:
    """Put `state` where the same training broke off; returns the records of its epochs.

    Args:
        saved: None in processes that do not lead: they get the leader's state.
    """
    kept, wrong = saved.load() if saved else (None, [])
    for problem in wrong:
        print(f"train: the saved {problem}, so it is passed over", flush=True)
    if wrong and kept is None:
        print("train: no whole state is left, so training starts afresh", flush=True)
    kept = world.from_leader(kept)
    if kept is None:
        return []
    state.load_state_dict(kept["state"])
    if saved:
        print(f"train: going on after {position(state)}, from {shown(saved.folder)}", flush=True)
    return [EpochRecord(**row) for row in kept["history"]]


def guarded(
    moments: Iterable[StepRecord | EpochRecord],
    state: TrainState,
    history: list[EpochRecord],
    saved: Checkpoint,
    params: CheckpointParams,
    wish: Event,
    world: World,
) -> Iterator[StepRecord | EpochRecord]:
    """Pass records on; add those of epochs to `history`; save the state when it is time.

    Raises:
        KeyboardInterrupt: after a step, once `wish` is set in any process; the state is saved then.
    """
    for record in moments:
        due = False
        if isinstance(record, EpochRecord):
            history.append(record)
            due = record.epoch % params.epochs == 0
        yield record
        stop = world.any(wish.is_set())
        if stop or due or saved.due:
            saved.save({"state": state.state_dict(), "history": [asdict(each) for each in history]})
        if stop:
            raise KeyboardInterrupt(
                f"the state after {position(state)} is saved, and the same command goes on from there"
            )


def follow(moments: Iterable[StepRecord | EpochRecord], state: TrainState, wish: Event, world: World) -> None:
    """Take part in a training that another process leads.

    Raises:
        KeyboardInterrupt: as `guarded` does, at the same step.
    """
    resume(state, None, world)
    for _ in moments:
        if world.any(wish.is_set()):
            raise KeyboardInterrupt


def position(state: TrainState) -> str:
    steps = len(state.measured)
    return f"epoch {state.epochs_done}" + (f" and {steps} steps of the next" if steps else "")


def shown(folder: Path) -> str:
    return f"{folder.parents[1].name}/{folder.parent.name}/{folder.name}"
