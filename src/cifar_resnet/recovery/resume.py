"""Save the state of a training while it runs, and continue from this state at the next start."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from threading import Event

from cifar_resnet.params.schema import CheckpointParams
from cifar_resnet.recovery.checkpoint import Checkpoint
from cifar_resnet.training.distributed import World
from cifar_resnet.training.history import EpochRecord, StepRecord
from cifar_resnet.training.loop import TrainState


def resume(state: TrainState, checkpoint: Checkpoint | None, world: World) -> list[EpochRecord]:
    """Load the saved state of the same training into `state`; returns the records of the finished epochs.

    Args:
        checkpoint: None except in the main process, which sends its state to the others.
    """
    saved, problems = checkpoint.load() if checkpoint else (None, [])
    for problem in problems:
        print(f"train: the saved {problem}; it is skipped", flush=True)
    if problems and saved is None:
        print("train: no saved state is complete; training starts from the beginning", flush=True)
    saved = world.broadcast(saved)
    if saved is None:
        return []
    state.load_state_dict(saved["state"])
    if checkpoint:
        print(f"train: resumed after {progress_text(state)} from {display_path(checkpoint.folder)}", flush=True)
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
    """Yield the records, append those of epochs to `history`, and save the state when it is due.

    Raises:
        KeyboardInterrupt: after the state is saved, if `stop_event` is set in any process.
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
                f"the state after {progress_text(state)} is saved; run the same command again to continue"
            )


def run_follower(
    records: Iterable[StepRecord | EpochRecord], state: TrainState, stop_event: Event, world: World
) -> None:
    """Train in a process that is not the main one, and neither save nor log.

    Raises:
        KeyboardInterrupt: at the same step as `checkpointed`.
    """
    resume(state, None, world)
    for _ in records:
        if world.any_process(stop_event.is_set()):
            raise KeyboardInterrupt


def progress_text(state: TrainState) -> str:
    steps = len(state.step_metrics)
    return f"epoch {state.epochs_done}" + (f" and step {steps} of the next" if steps else "")


def display_path(folder: Path) -> str:
    return f"{folder.parents[1].name}/{folder.parent.name}/{folder.name}"
