"""The training loop: a generator of one record per epoch. What becomes of a record is the caller's business."""

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cifar_resnet import inference, optimizer
from cifar_resnet.batches import Batches
from cifar_resnet.errors import UserError
from cifar_resnet.images import Images
from cifar_resnet.params import TrainParams
from cifar_resnet.records import EpochRecord
from cifar_resnet.resnet import ResNet


class TrainState:
    """Everything that changes while training: the model, its running average, the optimizers, the epochs done."""

    def __init__(self, model: ResNet, params: TrainParams) -> None:
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(params.average_decay), use_buffers=True)
        self.optimizers = optimizer.build(model, params)
        self.epochs_done = 0

    @property
    def product(self) -> ResNet:
        """The averaged network: what is validated and saved."""
        product = self.average.module
        assert isinstance(product, ResNet)
        return product


def fit(
    state: TrainState, batches: Batches, validation: Images, *, params: TrainParams, precision: torch.dtype
) -> Iterator[EpochRecord]:
    """Train from `state.epochs_done` to `params.epochs`; yields after each epoch.

    Raises:
        UserError: on a loss that is not finite, naming epoch and step.
    """
    steps, warmup_steps = params.epochs * len(batches), round(params.warmup_epochs * len(batches))
    for epoch in range(state.epochs_done, params.epochs):
        start = time.perf_counter()
        losses, hits = [], []
        factor = 0.0
        state.model.train()
        for index, (images, labels) in enumerate(batches.epoch(epoch)):
            step = epoch * len(batches) + index
            factor = optimizer.learning_rate_factor(step, steps=steps, warmup_steps=warmup_steps)
            optimizer.set_learning_rate(state.optimizers, factor)
            loss, hit = train_step(state, images, labels, params.label_smoothing, precision)
            if not torch.isfinite(loss):
                raise UserError(
                    f"the loss is {loss.item()} in epoch {epoch + 1}, step {index + 1}: lower train.filter_lr, "
                    "train.bias_lr or train.head_lr, or raise train.warmup_epochs"
                )
            losses.append(loss)
            hits.append(hit)
        seconds = time.perf_counter() - start
        state.epochs_done = epoch + 1
        validation_loss, validation_accuracy = validate(state.product, validation, params.batch_size, precision)
        yield EpochRecord(
            epoch=epoch + 1,
            train_loss=float(torch.stack(losses).mean()),
            train_accuracy=float(torch.stack(hits).mean()),
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            learning_rate=factor * params.filter_lr,
            seconds=seconds,
            images_per_second=len(batches) * batches.batch_size / seconds,
        )


def train_step(
    state: TrainState, images: Tensor, labels: Tensor, label_smoothing: float, precision: torch.dtype
) -> tuple[Tensor, Tensor]:
    """One forward and backward pass and update; returns (loss, accuracy) of the batch, detached."""
    device = state.model.mean.device
    images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
    with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
        logits = state.model(images)
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
    for each in state.optimizers:
        each.zero_grad()
    loss.backward()
    for each in state.optimizers:
        each.step()
    state.average.update_parameters(state.model)
    return loss.detach(), (logits.detach().argmax(1) == labels).float().mean()


def validate(
    model: ResNet, validation: Images, batch_size: int, precision: torch.dtype
) -> tuple[float | None, float | None]:
    """(mean cross-entropy, accuracy) on the hold-out, or (None, None) without one."""
    if not len(validation):
        return None, None
    logits = inference.predict(model, validation.pixels, batch_size=batch_size, precision=precision)
    labels = torch.from_numpy(validation.labels)
    return float(F.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).float().mean())
