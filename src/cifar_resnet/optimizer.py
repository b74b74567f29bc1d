"""Parameter groups, the optimizers, and the learning rate as a pure function of the step."""

from typing import Any

import torch
from torch import Tensor, nn

from cifar_resnet.params import TrainParams


def learning_rate_factor(step: int, *, steps: int, warmup_steps: int) -> float:
    """Share of the peak learning rate at `step` (0-based): a linear rise over `warmup_steps`, then linear to zero."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return (steps - step) / (steps - warmup_steps)


class FilterMuon(torch.optim.Muon):
    """Muon on convolution filters: each is seen as a matrix (filters, weights of a filter) that shares its memory.

    Every matrix keeps the norm sqrt(filters), so the learning rate is a relative one.
    Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
    """

    def __init__(self, filters: list[nn.Parameter], *, lr: float, momentum: float) -> None:
        self.filters = filters
        self.matrices = [nn.Parameter(as_matrix(f.data)) for f in filters]
        super().__init__(self.matrices, lr=lr, momentum=momentum, weight_decay=0.0, ns_steps=3)
        self.normalize()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for matrix, parameter in zip(self.matrices, self.filters, strict=True):
            assert parameter.grad is not None
            matrix.grad = as_matrix(parameter.grad)
        loss = super().step(closure)  # type: ignore[no-untyped-call]
        self.normalize()
        return loss

    @torch.no_grad()
    def normalize(self) -> None:
        for matrix in self.matrices:
            matrix.mul_(len(matrix) ** 0.5 / matrix.norm())

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for parameter in self.filters:
            parameter.grad = None


def as_matrix(filters: Tensor) -> Tensor:
    """(O, I, K, K) in channels-last memory -> (O, K*K*I), without a copy."""
    return filters.permute(0, 2, 3, 1).reshape(len(filters), -1)


def build(model: nn.Module, params: TrainParams) -> list[torch.optim.Optimizer]:
    """The optimizers, each parameter group with its `peak_lr`. Parameters that are not trained belong to none."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    filters = [p for _, p in trained if p.ndim == 4]
    heads = [p for name, p in trained if name.startswith("head.")]
    biases = [p for name, p in trained if p.ndim == 1 and not name.startswith("head.")]

    def group(parameters: list[nn.Parameter], lr: float) -> dict[str, Any]:
        return {"params": parameters, "lr": lr, "weight_decay": params.weight_decay / lr}

    groups = [group(biases, params.bias_lr), group(heads, params.head_lr)]
    optimizers: list[torch.optim.Optimizer] = []
    if params.optimizer == "muon":
        optimizers.append(FilterMuon(filters, lr=params.filter_lr, momentum=params.filter_momentum))
    else:
        groups.append(group(filters, params.filter_lr) | {"momentum": params.filter_momentum})
    optimizers.append(torch.optim.SGD(groups, momentum=params.momentum, nesterov=True, fused=True))
    for optimizer in optimizers:
        for parameters in optimizer.param_groups:
            parameters["peak_lr"] = parameters["lr"]
    return optimizers


def filter_learning_rate(optimizers: list[torch.optim.Optimizer]) -> float:
    """The convolution filters' at present; theirs is the first optimizer's last group."""
    return float(optimizers[0].param_groups[-1]["lr"])


def set_learning_rate(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]
