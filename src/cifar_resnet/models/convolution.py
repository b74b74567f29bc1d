"""A convolution whose weight gradient is fast on small images, on CPUs with AMX (Intel's matrix instructions)."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input, conv2d_weight

MAX_SIDE = 8  # pixels; larger images use PyTorch's own gradient
MAX_ROW_PIXELS = 48


class Convolution(nn.Conv2d):
    """`nn.Conv2d` without bias, padded by half of the kernel.

    oneDNN adds to the weight gradient once per row of pixels. On rows of 3 to 8 pixels, memory traffic of the weights
    takes most of the time. Images side by side make the rows longer. With 256 input and output channels and 1,000
    images of 7x7 (3x3) pixels, this reduces the time from 87 (51) to 42 (8) ms; the forward pass takes 25 (7) ms
    (benchmarks/LOG.md).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        small = self.stride == (1, 1) and self.kernel_size != (1, 1) and x.shape[-1] <= MAX_SIDE
        if small and self.training and x.dtype == torch.bfloat16 and x.device.type == "cpu" and has_amx():
            y: Tensor = SideBySide.apply(x, self.weight.to(x.dtype))
        else:
            y = super().forward(x)
        return y


class SideBySide(torch.autograd.Function):
    """Stride-1 convolution of x (N, C, H, W) with an odd square kernel.

    The weight gradient is computed on rows of several images, with zeros between them.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = context.saved_tensors
        margin = weight.shape[-1] // 2
        input_gradient = conv2d_input(x.shape, weight, gradient, padding=margin)
        images = images_per_row(len(x), x.shape[-1] + margin)
        x, gradient = side_by_side(x, images, margin), side_by_side(gradient, images, margin)
        return input_gradient, conv2d_weight(x, weight.shape, gradient, padding=margin)


def side_by_side(x: Tensor, images: int, margin: int) -> Tensor:
    """(N, C, H, W) -> (N / images, C, H, images * (W + margin)), channels last; zeros to the right of each image."""
    count, channels, height, width = x.shape
    rows = x.new_zeros(count // images, height, images, width + margin, channels)
    rows[..., :width, :] = x.permute(0, 2, 3, 1).unflatten(0, (-1, images)).transpose(1, 2)
    return rows.flatten(2, 3).permute(0, 3, 1, 2)


def images_per_row(count: int, width: int) -> int:
    """The largest divisor of `count` with which a row has at most `MAX_ROW_PIXELS` pixels, at least 1."""
    return next(images for images in range(max(1, MAX_ROW_PIXELS // width), 0, -1) if count % images == 0)


@cache
def has_amx() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
