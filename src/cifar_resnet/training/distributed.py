"""Training in one or several processes: a World wraps torch.distributed; its methods do nothing at size 1."""

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

TIMEOUT = timedelta(seconds=50)  # after which a process that does not respond counts as lost


@dataclass(frozen=True)
class World:
    """The processes that train together; only the main process, rank 0, writes files and logs."""

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
        buffer = torch.cat([tensor.flatten() for tensor in tensors])
        with _catch_lost_process():
            dist.all_reduce(buffer)
        buffer /= self.size
        for tensor, mean in zip(tensors, buffer.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set in any process; the result is the same in all."""
        if self.size == 1:
            return flag
        any_flag = torch.tensor(float(flag), device=self.device)
        with _catch_lost_process():
            dist.all_reduce(any_flag, dist.ReduceOp.MAX)
        return bool(any_flag)

    def broadcast(self, value: Any) -> Any:
        """The main process's value, in every process."""
        if self.size == 1:
            return value
        values = [value]
        with _catch_lost_process():
            dist.broadcast_object_list(values, device=self.device)
        return values[0]


@contextmanager
def join_world(target: torch.device) -> Iterator[World]:
    """Yield the world that this process belongs to under torchrun, otherwise a world of one."""
    if not is_worker():
        yield World(device=target)
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
    """Run this script again in `processes` workers on this machine, under torchrun's agent.

    Raises:
        UserError: if a worker fails; all other workers are stopped.
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
        reason = f"was killed by signal {-failure.exitcode}" if failure.exitcode < 0 else "failed, see above"
        raise UserError(
            f"worker {rank} of {processes} {reason}; run the same command again to continue from the last saved state"
        ) from None
    except SignalException:
        raise KeyboardInterrupt from None


def is_worker() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch normalization over the global batch, with statistics in float32; its scale stays 1.

    nn.SyncBatchNorm does the same, but only on GPUs.
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
    """Normalize a batch by the mean and variance of the global batch.

    Source: Ioffe and Szegedy, "Batch Normalization", 2015, section 3. Each pass exchanges two means per channel.
    """

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
        normalized = (x.float() - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1)
        gradient = gradient.float()
        sums = torch.stack([gradient.sum((0, 2, 3)), (gradient * normalized).sum((0, 2, 3))])
        bias_gradient = sums[0].clone()
        with _catch_lost_process():
            dist.all_reduce(sums)
        means = sums / (x.numel() / x.shape[1] * dist.get_world_size())
        mean_gradient, mean_product = means.view(2, 1, -1, 1, 1)
        x_gradient = (gradient - mean_gradient - normalized * mean_product) * scale.view(1, -1, 1, 1)
        return x_gradient.to(x.dtype), bias_gradient, None


def convert_sync_batch_norm(model: nn.Module, world: World) -> None:
    """Replace each batch normalization of the model by one over the global batch; no change in a world of one."""
    for name, child in model.named_children():
        if world.size > 1 and isinstance(child, nn.BatchNorm2d):
            synchronized = SyncBatchNorm(child.num_features)
            synchronized.load_state_dict(child.state_dict())
            synchronized.weight.requires_grad_(child.weight.requires_grad)
            setattr(model, name, synchronized)
        else:
            convert_sync_batch_norm(child, world)


@contextmanager
def _catch_lost_process() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"another process of this training is lost ({reason}); run the same command again to continue from the "
            "last saved state"
        ) from None
