"""A convolution whose weight gradient is quick on small images, where AMX does the arithmetic."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input, conv2d_weight

SMALL = 8  # pixels a side
ROW = 48  # pixels


class Convolution(nn.Conv2d):
    """`nn.Conv2d` without bias, its output as wide as its input.

    oneDNN adds to a weight gradient once per row of pixels, so that on rows of 3 to 8 pixels the memory traffic of the
    weights takes most of the time: 87 and 51 ms for 256 to 256 channels on 1,000 images of 7x7 and 3x3, 25 and 7 ms
    for the same arithmetic forward. Images laid side by side make the rows longer: 42 and 8 ms (benchmarks/LOG.md).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        small = self.stride == (1, 1) and self.kernel_size != (1, 1) and x.shape[-1] <= SMALL
        if small and self.training and x.dtype == torch.bfloat16 and x.device.type == "cpu" and has_amx():
            y: Tensor = SideBySide.apply(x, self.weight.to(x.dtype))
        else:
            y = super().forward(x)
        return y


class SideBySide(torch.autograd.Function):
    """Stride-1 convolution of x (N, C, H, W) with an odd square kernel; its weight gradient sees several images in a
    row, with zeros between them."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor) -> Tensor:
        context.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = context.saved_tensors
        margin = weight.shape[-1] // 2
        inputs = conv2d_input(x.shape, weight, gradient, padding=margin)
        images = images_in_a_row(len(x), x.shape[-1] + margin)
        x, gradient = side_by_side(x, images, margin), side_by_side(gradient, images, margin)
        return inputs, conv2d_weight(x, weight.shape, gradient, padding=margin)


def side_by_side(x: Tensor, images: int, margin: int) -> Tensor:
    """(N, C, H, W) -> (N / images, C, H, images * (W + margin)), channels last; zeros to the right of every image."""
    count, channels, height, width = x.shape
    rows = x.new_zeros(count // images, height, images, width + margin, channels)
    rows[..., :width, :] = x.permute(0, 2, 3, 1).unflatten(0, (-1, images)).transpose(1, 2)
    return rows.flatten(2, 3).permute(0, 3, 1, 2)


def images_in_a_row(count: int, width: int) -> int:
    """The most images, a divisor of their count, that make a row of at most `ROW` pixels."""
    return next(images for images in range(max(1, ROW // width), 0, -1) if count % images == 0)


@cache
def has_amx() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
