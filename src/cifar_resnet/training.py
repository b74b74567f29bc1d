"""The training loop: a generator of a record per step and per epoch. What becomes of them is the caller's business."""

import math
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cifar_resnet import distributed, hardware, inference, optimizer, resnet
from cifar_resnet.batches import Batches
from cifar_resnet.distributed import World
from cifar_resnet.errors import UserError
from cifar_resnet.images import Images
from cifar_resnet.params import ModelParams, TrainParams
from cifar_resnet.records import EpochRecord, StepRecord
from cifar_resnet.resnet import ResNet

WHITENING_IMAGES = 5_000


class TrainState:
    """Everything that changes while training: the model, its running average, the optimizers, how far it is.

    `measured` holds (loss, accuracy) of each step of the epoch under way, `seconds` what they took.
    """

    def __init__(self, model: ResNet, params: TrainParams) -> None:
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(params.average_decay), use_buffers=True)
        self.optimizers = optimizer.build(model, params)
        self.epochs_done = 0
        self.measured: list[tuple[float, float]] = []
        self.seconds = 0.0

    @property
    def product(self) -> ResNet:
        """The averaged network: what is validated and saved."""
        product = self.average.module
        assert isinstance(product, ResNet)
        return product

    def state_dict(self) -> dict[str, Any]:
        """Whatever it takes to go on bit for bit; the order of images and their augmentation follow from the epoch."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [each.state_dict() for each in self.optimizers],
            "progress": (self.epochs_done, self.measured, self.seconds),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        for each, values in zip(self.optimizers, saved["optimizers"], strict=True):
            each.load_state_dict(values)
        self.epochs_done, self.measured, self.seconds = saved["progress"]


def start(
    model: ModelParams, params: TrainParams, training: Images, statistics: dict[str, Any], world: World
) -> TrainState:
    """A network that has learned nothing but its whitening filters; `statistics` is what preprocess wrote."""
    torch.manual_seed(params.seed)
    network = resnet.build(model, statistics["channel_mean"], statistics["channel_deviation"])
    resnet.whiten(network, torch.from_numpy(training.pixels[:WHITENING_IMAGES]))
    if params.shared_normalisation:
        distributed.share_normalisation(network, world)
    return TrainState(network.to(hardware.device()), params)


def fit(
    state: TrainState, batches: Batches, validation: Images, *, params: TrainParams, precision: torch.dtype
) -> Iterator[StepRecord | EpochRecord]:
    """Train from where `state` stands to `params.epochs`; at every yield the state can be saved.

    Raises:
        UserError: on a loss that is not finite, naming epoch and step.
    """
    for epoch in range(state.epochs_done, params.epochs):
        start = time.perf_counter()
        for images, labels in islice(batches.epoch(epoch), len(state.measured), None):
            set_learning_rate(state, batches, params)
            loss, accuracy = train_step(state, images, labels, params, precision, batches.world)
            state.measured.append((loss, accuracy))
            state.seconds += time.perf_counter() - start
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss is {loss} in epoch {epoch + 1}, step {len(state.measured)}: lower train.filter_lr, "
                    "train.bias_lr or train.head_lr, or raise train.warmup_epochs"
                )
            yield StepRecord(epoch + 1, len(state.measured), len(batches), loss)
            start = time.perf_counter()
        yield end_epoch(state, batches, validation, params, precision)


def set_learning_rate(state: TrainState, batches: Batches, params: TrainParams) -> None:
    """For the step that comes next."""
    factor = optimizer.learning_rate_factor(
        state.epochs_done * len(batches) + len(state.measured),
        steps=params.epochs * len(batches),
        warmup_steps=round(params.warmup_epochs * len(batches)),
    )
    optimizer.set_learning_rate(state.optimizers, factor)


def train_step(
    state: TrainState, images: Tensor, labels: Tensor, params: TrainParams, precision: torch.dtype, world: World
) -> tuple[float, float]:
    """One update; returns (loss, accuracy) of the whole batch, with `sam_radius` at the perturbed weights."""
    device = state.model.mean.device
    images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
    if params.sam_radius:
        backward(state, images[::4], labels[::4], params, precision, world)
    with optimizer.perturbed(state.model, params.sam_radius):
        measured = backward(state, images, labels, params, precision, world)
    for each in state.optimizers:
        each.step()
    state.average.update_parameters(state.model)
    return float(measured[0]), float(measured[1])


def backward(
    state: TrainState, images: Tensor, labels: Tensor, params: TrainParams, precision: torch.dtype, world: World
) -> Tensor:
    """Leave every process the whole batch's gradients; returns its (loss, accuracy)."""
    state.model.train()
    with torch.autocast(images.device.type, dtype=precision, enabled=precision != torch.float32):
        logits = state.model(images)
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=params.label_smoothing)
    for each in state.optimizers:
        each.zero_grad()
    loss.backward()
    measured = torch.stack([loss.detach(), (logits.detach().argmax(1) == labels).float().mean()])
    world.average([measured, *(p.grad for p in state.model.parameters() if p.grad is not None)])
    return measured


def end_epoch(
    state: TrainState, batches: Batches, validation: Images, params: TrainParams, precision: torch.dtype
) -> EpochRecord:
    """Validate, and count the epoch as done."""
    losses, accuracies = (torch.tensor(column) for column in zip(*state.measured, strict=True))
    validation_loss, validation_accuracy = validate(state.product, validation, params.batch_size, precision)
    record = EpochRecord(
        epoch=state.epochs_done + 1,
        train_loss=float(losses.mean()),
        train_accuracy=float(accuracies.mean()),
        validation_loss=validation_loss,
        validation_accuracy=validation_accuracy,
        learning_rate=optimizer.filter_learning_rate(state.optimizers),
        seconds=state.seconds,
        images_per_second=len(batches) * batches.batch_size / state.seconds,
    )
    state.epochs_done, state.measured, state.seconds = record.epoch, [], 0.0
    return record


def validate(
    model: ResNet, validation: Images, batch_size: int, precision: torch.dtype
) -> tuple[float | None, float | None]:
    """(mean cross-entropy, accuracy) on the hold-out, or (None, None) without one."""
    if not len(validation):
        return None, None
    logits = inference.predict(model, validation.pixels, batch_size=batch_size, precision=precision)
    labels = torch.from_numpy(validation.labels)
    return float(F.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).float().mean())
