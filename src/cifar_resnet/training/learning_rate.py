"""The learning rate: a pure function of the step, applied to the optimizers' peak rates."""

import torch


def learning_rate_factor(step: int, *, steps: int, warmup_steps: int) -> float:
    """Learning rate at `step` (0-based), 0 to 1 of its peak: a linear rise over `warmup_steps`, then linear to zero."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return (steps - step) / (steps - warmup_steps)


def set_learning_rate(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set the learning rate of each group to `factor` times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]


def filter_learning_rate(optimizers: list[torch.optim.Optimizer]) -> float:
    """The present learning rate of the convolution filters, the last group of the first optimizer."""
    return float(optimizers[0].param_groups[-1]["lr"])
