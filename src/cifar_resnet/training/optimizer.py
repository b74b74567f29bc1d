"""The optimizers, and the weight perturbation of sharpness-aware minimization."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cifar_resnet import device
from cifar_resnet.params.schema import TrainParams


class Muon(torch.optim.Optimizer):
    """Muon on convolution filters, each viewed as a matrix (filters, weights of a filter).

    Each matrix keeps the norm sqrt(filters), so the learning rate is relative to the weights. torch.optim.Muon takes
    only matrices and always orthogonalizes in bfloat16; on a CPU without it, that takes half of a training step.
    Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.

    Args:
        precision: dtype of the orthogonalization.
    """

    def __init__(self, filters: list[nn.Parameter], *, lr: float, momentum: float, precision: torch.dtype) -> None:
        super().__init__(filters, {"lr": lr, "momentum": momentum})
        self.precision = precision
        for filter_ in filters:
            normalize(as_matrix(filter_.data))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            for filter_ in group["params"]:
                matrix, gradient = as_matrix(filter_), as_matrix(filter_.grad)
                average = self.state[filter_].setdefault("momentum_buffer", torch.zeros_like(gradient))
                average.lerp_(gradient, 1 - group["momentum"])
                update = orthogonalize(gradient.lerp(average, group["momentum"]), self.precision)
                matrix.add_(update, alpha=-group["lr"] * max(1, len(matrix) / matrix.shape[1]) ** 0.5)
                normalize(matrix)


def orthogonalize(matrix: Tensor, precision: torch.dtype) -> Tensor:
    """Approximate the nearest (semi-)orthogonal matrix by three Newton-Schulz steps with K. Jordan's coefficients."""
    tall = len(matrix) > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(precision)
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(3):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if tall else x


def normalize(matrix: Tensor) -> None:
    """Scale the matrix in place to the norm sqrt(rows)."""
    matrix.mul_(len(matrix) ** 0.5 / matrix.norm())


def as_matrix(filters: Tensor) -> Tensor:
    """(O, I, K, K) in channels-last memory -> (O, K*K*I), without a copy."""
    return filters.permute(0, 2, 3, 1).reshape(len(filters), -1)


def build_optimizers(model: nn.Module, params: TrainParams) -> list[torch.optim.Optimizer]:
    """The optimizers; each parameter group has a `peak_lr`. Frozen parameters are in no group."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    filters = [p for _, p in trained if p.ndim == 4]
    heads = [p for name, p in trained if name.startswith("head.")]
    biases = [p for name, p in trained if p.ndim == 1 and not name.startswith("head.")]

    def make_group(parameters: list[nn.Parameter], lr: float, momentum: float) -> dict[str, Any]:
        decay = {"weight_decay": params.weight_decay / lr}
        return {"params": parameters, "lr": lr, "momentum": momentum, "nesterov": momentum > 0} | decay

    groups = [make_group(biases, params.bias_lr, params.momentum), make_group(heads, params.head_lr, params.momentum)]
    optimizers: list[torch.optim.Optimizer] = []
    if params.optimizer == "muon":
        precision, _ = device.select_dtype(params.precision, filters[0].device)
        optimizers.append(Muon(filters, lr=params.filter_lr, momentum=params.filter_momentum, precision=precision))
    else:
        groups.append(make_group(filters, params.filter_lr, params.filter_momentum))
    optimizers.append(torch.optim.SGD(groups, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


@contextmanager
def sam_perturbation(model: nn.Module, rho: float) -> Iterator[None]:
    """Inside the block, each convolution's filters are moved along their gradient by `rho` times their norm.

    Sharpness-aware minimization (SAM) uses the gradient at that point. Running statistics are restored as well.
    Source: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", 2021; there `rho` is
    the radius for all weights together.
    """
    filters = {p: p.grad for p in model.parameters() if p.ndim == 4 and p.grad is not None}
    changed = [*filters, *model.buffers()]
    originals = [tensor.detach().clone() for tensor in changed]
    with torch.no_grad():
        for filter_, gradient in filters.items():
            filter_.add_(gradient * (rho * filter_.norm() / gradient.norm().clamp(min=1e-12)))
    yield
    with torch.no_grad():
        for tensor, original in zip(changed, originals, strict=True):
            tensor.copy_(original)
