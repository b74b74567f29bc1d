"""The training loop: a generator of one record per step and per epoch. The caller decides what to do with them."""

import math
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cifar_resnet.data.dataset import Images
from cifar_resnet.errors import UserError
from cifar_resnet.inference.predictor import predict_logits
from cifar_resnet.models import resnet
from cifar_resnet.models.resnet import ResNet
from cifar_resnet.params.schema import ModelParams, TrainParams
from cifar_resnet.training.distributed import World, convert_sync_batch_norm
from cifar_resnet.training.history import EpochRecord, StepRecord
from cifar_resnet.training.initial_weights import InitialWeights
from cifar_resnet.training.learning_rate import filter_learning_rate, learning_rate_factor, set_learning_rate
from cifar_resnet.training.loader import BatchLoader
from cifar_resnet.training.optimizer import build_optimizers, sam_perturbation

WHITENING_IMAGES = 5_000
SAM_STRIDE = 4  # sharpness-aware minimization takes its first gradient from every fourth image of the batch


class TrainState:
    """Everything that changes during training: the model, its moving average, the optimizers, and the progress.

    `step_metrics` holds (loss, accuracy) of each step of the current epoch, `seconds` the duration of these steps.
    """

    def __init__(self, model: ResNet, params: TrainParams) -> None:
        self.model = model
        self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(params.ema_decay), use_buffers=True)
        self.optimizers = build_optimizers(model, params)
        self.epochs_done = 0
        self.step_metrics: list[tuple[float, float]] = []
        self.seconds = 0.0

    @property
    def ema_model(self) -> ResNet:
        """The averaged network: the one that is validated and saved."""
        model = self.ema.module
        assert isinstance(model, ResNet)
        return model

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to continue bit for bit; the epoch determines image order and augmentation."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": (self.epochs_done, self.step_metrics, self.seconds),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        self.epochs_done, self.step_metrics, self.seconds = state["progress"]


def init_train_state(
    model_params: ModelParams,
    params: TrainParams,
    training: Images,
    statistics: dict[str, Any],
    world: World,
    *,
    initial: InitialWeights | None = None,
) -> TrainState:
    """The state of an untrained network on the device of `world`; the images determine its whitening filters.

    Args:
        statistics: the content of statistics.json.
        initial: the weights to start from, except for those of the last layer.
    """
    torch.manual_seed(params.seed)
    model = resnet.build_model(
        model_params, statistics["channel_mean"], statistics["channel_std"], num_classes=len(statistics["classes"])
    )
    if initial:
        initial.load_into(model)
    else:
        whitening_images = torch.from_numpy(training.pixels[:WHITENING_IMAGES])
        resnet.init_whitening(model, whitening_images, model_params.whitening_epsilon)
    model.mirror_views = params.flip != "none" and not model_params.mirrored
    if params.sync_batch_norm:
        convert_sync_batch_norm(model, world)
    return TrainState(model.to(world.device), params)


def fit(
    state: TrainState, loader: BatchLoader, validation: Images, *, params: TrainParams, precision: torch.dtype
) -> Iterator[StepRecord | EpochRecord]:
    """Train from `state` to the end of epoch `params.epochs`; at each yield the state can be saved.

    Raises:
        UserError: if a loss is not finite; the message names epoch and step.
    """
    for epoch in range(state.epochs_done, params.epochs):
        start = time.perf_counter()
        steps_done = len(state.step_metrics)  # more than 0 after a resume
        for images, labels in islice(loader.epoch(epoch), steps_done, None):
            schedule_learning_rate(state, loader, params)
            loss, accuracy = train_step(state, images, labels, params, precision, loader.world)
            state.step_metrics.append((loss, accuracy))
            state.seconds += time.perf_counter() - start
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss is {loss} in epoch {epoch + 1}, step {len(state.step_metrics)}: lower train.filter_lr, "
                    "train.bias_lr or train.head_lr, or raise train.warmup_epochs"
                )
            yield StepRecord(epoch + 1, len(state.step_metrics), len(loader), loss)
            start = time.perf_counter()
        yield end_epoch(state, loader, validation, params, precision)


def schedule_learning_rate(state: TrainState, loader: BatchLoader, params: TrainParams) -> None:
    """Set the learning rates of the next step."""
    factor = learning_rate_factor(
        state.epochs_done * len(loader) + len(state.step_metrics),
        steps=params.epochs * len(loader),
        warmup_steps=round(params.warmup_epochs * len(loader)),
    )
    set_learning_rate(state.optimizers, factor)


def train_step(
    state: TrainState, images: Tensor, labels: Tensor, params: TrainParams, precision: torch.dtype, world: World
) -> tuple[float, float]:
    """One update; returns (loss, accuracy) of the global batch, measured at the perturbed weights if `sam_rho` > 0."""
    images, labels = (tensor.to(world.device, non_blocking=True) for tensor in (images, labels))
    if params.sam_rho:
        compute_gradients(state, images[::SAM_STRIDE], labels[::SAM_STRIDE], params, precision, world)
        with sam_perturbation(state.model, params.sam_rho):
            metrics = compute_gradients(state, images, labels, params, precision, world)
    else:
        metrics = compute_gradients(state, images, labels, params, precision, world)
    for optimizer in state.optimizers:
        optimizer.step()
    state.ema.update_parameters(state.model)
    return float(metrics[0]), float(metrics[1])


def compute_gradients(
    state: TrainState, images: Tensor, labels: Tensor, params: TrainParams, precision: torch.dtype, world: World
) -> Tensor:
    """Compute the gradients of the global batch in every process; returns its (loss, accuracy)."""
    state.model.train()
    with torch.autocast(images.device.type, dtype=precision, enabled=precision != torch.float32):
        logits = state.model(images)
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=params.label_smoothing)
    for optimizer in state.optimizers:
        optimizer.zero_grad()
    loss.backward()
    metrics = torch.stack([loss.detach(), (logits.detach().argmax(1) == labels).float().mean()])
    world.all_reduce_mean([metrics, *(p.grad for p in state.model.parameters() if p.grad is not None)])
    return metrics


def end_epoch(
    state: TrainState, loader: BatchLoader, validation: Images, params: TrainParams, precision: torch.dtype
) -> EpochRecord:
    """Validate and finish the epoch: the state then stands before the first step of the next one."""
    losses, accuracies = (torch.tensor(column) for column in zip(*state.step_metrics, strict=True))
    validation_loss, validation_accuracy = validate(state.ema_model, validation, params.batch_size, precision)
    record = EpochRecord(
        epoch=state.epochs_done + 1,
        train_loss=float(losses.mean()),
        train_accuracy=float(accuracies.mean()),
        validation_loss=validation_loss,
        validation_accuracy=validation_accuracy,
        learning_rate=filter_learning_rate(state.optimizers),
        seconds=state.seconds,
        images_per_second=len(loader) * loader.batch_size / state.seconds,
    )
    state.epochs_done, state.step_metrics, state.seconds = record.epoch, [], 0.0
    return record


def validate(
    model: ResNet, validation: Images, batch_size: int, precision: torch.dtype
) -> tuple[float | None, float | None]:
    """(mean cross-entropy, accuracy) on the validation images, or (None, None) without any."""
    if not len(validation):
        return None, None
    logits = predict_logits(model, validation.pixels, batch_size=batch_size, precision=precision)
    labels = torch.from_numpy(validation.labels)
    return float(F.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).float().mean())
