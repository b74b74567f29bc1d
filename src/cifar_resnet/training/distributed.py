"""One process or several: torch.distributed behind a World whose methods do nothing at size 1."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from cifar_resnet.errors import UserError

TIMEOUT = timedelta(seconds=50)  # after which a process that answers no more counts as lost


@dataclass(frozen=True)
class World:
    """The processes that train together; `rank` 0 leads: it alone writes and logs."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def shard(self, batch: Tensor) -> Tensor:
        """This process's rows of a batch (B, ...), B a multiple of `size`."""
        return batch.chunk(self.size)[self.rank] if self.size > 1 else batch

    def all_reduce_mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace float32 tensors by their mean over all processes, in one message."""
        if self.size == 1:
            return
        message = torch.cat([tensor.flatten() for tensor in tensors])
        with _catch_lost_process():
            dist.all_reduce(message)
        message /= self.size
        for tensor, mean in zip(tensors, message.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set anywhere; all processes get the same answer."""
        if self.size == 1:
            return flag
        message = torch.tensor(float(flag), device=self.device)
        with _catch_lost_process():
            dist.all_reduce(message, dist.ReduceOp.MAX)
        return bool(message)

    def broadcast(self, value: Any) -> Any:
        """The leader's value, in every process."""
        if self.size == 1:
            return value
        message = [value]
        with _catch_lost_process():
            dist.broadcast_object_list(message, device=self.device)
        return message[0]


@contextmanager
def join_world(target: torch.device) -> Iterator[World]:
    """The world that torchrun started this process in, or a world of one."""
    if not is_worker():
        yield World()
        return
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"])))
    if target.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with _catch_lost_process():
        dist.init_process_group("nccl" if target.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), target)
    finally:
        dist.destroy_process_group()


def launch_workers(processes: int) -> None:
    """Run this script again in as many workers, under torchrun's agent on this machine.

    Raises:
        UserError: if a worker fails; the others are stopped then.
    """
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0",
        max_restarts=0, monitor_interval=0.5,
    )  # fmt: skip
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        elastic_launch(config, sys.executable)(*sys.argv)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        how = f"was killed by signal {-failure.exitcode}" if failure.exitcode < 0 else "failed, see above"
        raise UserError(
            f"worker {rank} of {processes} {how}; run the same command again: it goes on from the last saved state"
        ) from None
    except SignalException:
        raise KeyboardInterrupt from None


def is_worker() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes, as if they were one; its scale stays 1.

    nn.SyncBatchNorm does the same on GPUs only. Its statistics are those of float32 inputs.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        y: Tensor
        y, mean, variance = _SyncNormalize.apply(x, self.bias, self.eps)
        count = x.numel() / x.shape[1] * dist.get_world_size()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        return y


class _SyncNormalize(torch.autograd.Function):
    """Ioffe and Szegedy, "Batch Normalization", 2015, section 3; the two means of each pass cross the processes."""

    @staticmethod
    def forward(context: Any, x: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        variance, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        gathered = [torch.empty_like(torch.stack([mean, variance])) for _ in range(dist.get_world_size())]
        with _catch_lost_process():
            dist.all_gather(gathered, torch.stack([mean, variance]))
        means, variances = torch.stack(gathered).unbind(1)
        mean, variance = means.mean(0), variances.mean(0) + means.var(0, correction=0)
        context.save_for_backward(x, mean, torch.rsqrt(variance + epsilon))
        context.mark_non_differentiable(mean, variance)
        y = torch.batch_norm(x, None, bias, mean, variance, False, 0.0, epsilon, False)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor, *_: None) -> tuple[Tensor, Tensor, None]:
        x, mean, scale = context.saved_tensors
        normalised = (x.float() - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1)
        slope = gradient.float()
        sums = torch.stack([slope.sum((0, 2, 3)), (slope * normalised).sum((0, 2, 3))])
        bias = sums[0].clone()
        with _catch_lost_process():
            dist.all_reduce(sums)
        means = sums / (x.numel() / x.shape[1] * dist.get_world_size())
        first, second = means.view(2, 1, -1, 1, 1)
        return ((slope - first - normalised * second) * scale.view(1, -1, 1, 1)).to(x.dtype), bias, None


def convert_sync_batch_norm(model: nn.Module, world: World) -> None:
    """Let every batch normalisation of the model see the whole batch."""
    for name, child in model.named_children():
        if world.size > 1 and isinstance(child, nn.BatchNorm2d):
            shared = SyncBatchNorm(child.num_features)
            shared.load_state_dict(child.state_dict())
            shared.weight.requires_grad_(child.weight.requires_grad)
            setattr(model, name, shared)
        else:
            convert_sync_batch_norm(child, world)


@contextmanager
def _catch_lost_process() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        said = " ".join(str(error).split())[:120]
        raise UserError(
            f"another process of this training is lost ({said}); run the same command again: it goes on from the last "
            "saved state"
        ) from None
