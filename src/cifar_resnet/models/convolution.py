"""A convolution that computes no more than pooling needs.

Its weight gradient is fast on small images, on CPUs with AMX (Intel's matrix instructions).
"""

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

    With `even_output`, the last row and column are left out if their number is odd. Pooling of 2x2 pixels does not use
    them: it makes 3x3 pixels of 7x7, and looks at 6x6.

    oneDNN adds to the weight gradient once per row of pixels. On rows of 3 to 8 pixels, memory traffic of the weights
    takes most of the time. Images side by side make the rows longer. With 256 input and output channels and 1,000
    images of 7x7 (3x3) pixels, this reduces the time from 87 (51) to 42 (8) ms; the forward pass takes 25 (7) ms
    (benchmarks/LOG.md).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, even_output: bool = False) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.even_output = even_output

    def forward(self, x: Tensor) -> Tensor:
        margin = self.kernel_size[0] // 2
        odd_rows, odd_columns = x.shape[-2] % 2, x.shape[-1] % 2
        if self.even_output and (odd_rows or odd_columns):
            x, margin = F.pad(x, (margin, margin - odd_columns, margin, margin - odd_rows)), 0
        return convolve(x, self.weight, self.stride, margin, training=self.training)


def convolve(x: Tensor, weight: Tensor, stride: tuple[int, ...], margin: int, *, training: bool) -> Tensor:
    """`F.conv2d` without bias; in training with the weight gradient of `SideBySide` where it is faster."""
    small = stride == (1, 1) and weight.shape[-1] > 1 and x.shape[-1] <= MAX_SIDE
    if small and training and uses_amx(x):
        y: Tensor = SideBySide.apply(x, weight.to(x.dtype), margin)
        return y
    return F.conv2d(x, weight, None, stride, margin)


class SideBySide(torch.autograd.Function):
    """Stride-1 convolution of x (N, C, H, W) with a square kernel; `margin`: padding.

    The weight gradient is computed on rows of several images, with zeros between them.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, margin: int) -> Tensor:
        context.save_for_backward(x, weight)
        context.margin = margin
        return F.conv2d(x, weight, padding=margin)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (x, weight), margin = context.saved_tensors, context.margin
        input_gradient = conv2d_input(x.shape, weight, gradient, padding=margin)
        width = x.shape[-1] + margin
        images = images_per_row(len(x), width)
        x, gradient = side_by_side(x, images, width), side_by_side(gradient, images, width)
        gradient = gradient[..., : images * width + 2 * margin - weight.shape[-1] + 1]  # without padding it is shorter
        return input_gradient, conv2d_weight(x, weight.shape, gradient, padding=margin), None


def side_by_side(x: Tensor, images: int, width: int) -> Tensor:
    """(N, C, H, W) -> (N / images, C, H, images * width), channels last; zeros to the right of each image."""
    count, channels, height, _ = x.shape
    rows = x.new_zeros(count // images, height, images, width, channels)
    rows[..., : x.shape[-1], :] = x.permute(0, 2, 3, 1).unflatten(0, (-1, images)).transpose(1, 2)
    return rows.flatten(2, 3).permute(0, 3, 1, 2)


def images_per_row(count: int, width: int) -> int:
    """The largest divisor of `count` with which a row has at most `MAX_ROW_PIXELS` pixels, at least 1."""
    return next(images for images in range(max(1, MAX_ROW_PIXELS // width), 0, -1) if count % images == 0)


def uses_amx(x: Tensor) -> bool:
    """Whether convolutions of x run on AMX."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and has_amx()


@cache
def has_amx() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
