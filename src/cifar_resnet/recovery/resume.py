"""Save the state of a training while it runs, and continue from it at the next start."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from threading import Event

from cifar_resnet.params.sections import CheckpointParams
from cifar_resnet.recovery.checkpoint import Checkpoint
from cifar_resnet.training.distributed import World
from cifar_resnet.training.history import EpochRecord, StepRecord
from cifar_resnet.training.loop import TrainState


def resume(state: TrainState, checkpoint: Checkpoint | None, world: World) -> list[EpochRecord]:
    """Set `state` to where the same training stopped; returns the records of its finished epochs.

    Args:
        checkpoint: None in all processes but the main one, which sends them its state.
    """
    saved, problems = checkpoint.load() if checkpoint else (None, [])
    for problem in problems:
        print(f"train: the saved {problem}, skipped", flush=True)
    if problems and saved is None:
        print("train: no complete state is left, training starts from the beginning", flush=True)
    saved = world.broadcast(saved)
    if saved is None:
        return []
    state.load_state_dict(saved["state"])
    if checkpoint:
        print(f"train: resumed after {progress_text(state)}, from {display_path(checkpoint.folder)}", flush=True)
    return [EpochRecord(**row) for row in saved["history"]]


def checkpointed(
    records: Iterable[StepRecord | EpochRecord],
    state: TrainState,
    history: list[EpochRecord],
    checkpoint: Checkpoint,
    params: CheckpointParams,
    stop_event: Event,
    world: World,
) -> Iterator[StepRecord | EpochRecord]:
    """Pass records on, append those of epochs to `history`, and save the state when it is due.

    Raises:
        KeyboardInterrupt: after the step in which `stop_event` was set in any process; the state is saved before.
    """
    for record in records:
        due = False
        if isinstance(record, EpochRecord):
            history.append(record)
            due = record.epoch % params.epochs == 0
        yield record
        stop = world.any_process(stop_event.is_set())
        if stop or due or checkpoint.due:
            checkpoint.save({"state": state.state_dict(), "history": [asdict(row) for row in history]})
        if stop:
            raise KeyboardInterrupt(
                f"the state after {progress_text(state)} is saved, the same command continues from there"
            )


def run_follower(
    records: Iterable[StepRecord | EpochRecord], state: TrainState, stop_event: Event, world: World
) -> None:
    """Take part in a training whose main process is another one.

    Raises:
        KeyboardInterrupt: at the same step as `checkpointed`.
    """
    resume(state, None, world)
    for _ in records:
        if world.any_process(stop_event.is_set()):
            raise KeyboardInterrupt


def progress_text(state: TrainState) -> str:
    steps = len(state.step_metrics)
    return f"epoch {state.epochs_done}" + (f" and {steps} steps of the next" if steps else "")


def display_path(folder: Path) -> str:
    return f"{folder.parents[1].name}/{folder.parent.name}/{folder.name}"
