"""Convolution with pairs of filters, each the mirror image of the other, for half the multiply-adds of as many others.

With channel pairs as sums and differences, and columns of a patch as what is even and odd about its middle, the matrix
of all filters falls into two blocks, half as wide and half as high.
Source: Cohen and Welling, "Group Equivariant Convolutional Networks", 2016, for the group of one reflection.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

FOLDED = 4_000_000  # values that stay in a processor's cache


class MirroredConvolution(nn.Conv2d):
    """Half of the filters are the mirror images of the other half, in the order of it, so that mirroring the input
    mirrors the output and swaps its halves. The channels of the input are such halves too.

    Its parameters are what the filters do to a patch that is its own mirror image (`weight`) and to one whose mirror
    image is its negative (`odd`): the two blocks, which Muon orthogonalizes each as the matrix that acts.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs // 2, outputs // 2, kernel, padding=kernel // 2, bias=False)
        self.odd = nn.Parameter(torch.empty_like(self.weight))
        nn.init.kaiming_uniform_(self.odd, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Folded.apply(x, torch.stack([self.weight, self.odd]).to(x.dtype))
        return y


class Folded(torch.autograd.Function):
    """Convolution of x (N, 2 I, H, W), channels last, with blocks (2, O, I, K, K) to (N, 2 O, H, W), a few images at a
    time, so that what they are folded to needs little memory."""

    @staticmethod
    def forward(context: Any, x: Tensor, blocks: Tensor) -> Tensor:
        context.save_for_backward(x, blocks)
        kernel, filters = blocks.shape[-1], as_filters(blocks)
        y = x.new_empty(len(x), *x.shape[2:], len(filters)).permute(0, 3, 1, 2)
        for images, out in in_parts(kernel, x, y):
            halves = F.conv2d(fold(images, kernel), filters, padding=(kernel // 2, 0), groups=2)
            sums_and_differences(halves, out)
        return y

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        x, blocks = context.saved_tensors
        kernel, filters = blocks.shape[-1], as_filters(blocks)
        of_x = torch.empty_like(x)
        of_blocks = torch.zeros_like(blocks, dtype=torch.promote_types(x.dtype, torch.float32))
        for images, y, out in in_parts(kernel, x, gradient, of_x):
            folded, halves = fold(images, kernel), torch.empty_like(y)
            sums_and_differences(y, halves)
            of_blocks += block_gradient(folded, halves, kernel)
            if context.needs_input_grad[0]:
                unfold(conv2d_input(folded.shape, filters, halves, padding=(kernel // 2, 0), groups=2), kernel, out)
        return of_x if context.needs_input_grad[0] else None, of_blocks.to(blocks.dtype)


def in_parts(kernel: int, x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some images at a time of x and of what belongs to them."""
    size = max(1, FOLDED // (kernel * x.shape[1:].numel()))
    return zip(*(each.split(size) for each in (x, *others)), strict=True)


def as_filters(blocks: Tensor) -> Tensor:
    """(2, O, I, K, K) -> (2 O, K I, K, 1), halved, for a convolution of what is folded, in two groups.

    Not channels last, as parameters are: a stride of 1 for the last of these sizes makes oneDNN read wrong filters.
    """
    return (blocks / 2).permute(0, 1, 4, 2, 3).flatten(0, 1).flatten(1, 2).unsqueeze(-1).contiguous()


def sums_and_differences(x: Tensor, out: Tensor) -> None:
    """Of the channels of a pair, half of all channels apart."""
    (one, other), (sums, differences) = x.chunk(2, dim=1), out.chunk(2, dim=1)
    torch.add(one, other, out=sums)
    torch.sub(one, other, out=differences)


def fold(x: Tensor, kernel: int) -> Tensor:
    """(N, 2 I, H, W) -> (N, 2 K I, H, W): of each of K columns about a pixel the one half of the channels plus, then
    minus, the other half of the column that mirrors it, with zeros beyond the border."""
    count, channels, height, width = x.shape
    pairs = channels // 2
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, kernel // 2, kernel // 2))
    folded = x.new_empty(count, height, width, 2, kernel, pairs)
    for column in range(kernel):
        one = x[:, :, column:, :pairs][:, :, :width]
        other = x[:, :, kernel - 1 - column :, pairs:][:, :, :width]
        torch.add(one, other, out=folded[:, :, :, 0, column])
        torch.sub(one, other, out=folded[:, :, :, 1, column])
    return folded.flatten(3).permute(0, 3, 1, 2)


def unfold(gradient: Tensor, kernel: int, out: Tensor) -> None:
    """The gradient of `fold`'s input, from that of its output."""
    sums, differences = gradient.permute(0, 2, 3, 1).unflatten(3, (2, kernel, -1)).unbind(3)
    one, other = out.permute(0, 2, 3, 1).chunk(2, dim=3)
    middle, width = kernel // 2, out.shape[3]
    torch.add(sums[:, :, :, middle], differences[:, :, :, middle], out=one)
    torch.sub(sums[:, :, :, middle], differences[:, :, :, middle], out=other)
    for column in range(kernel):
        shift = abs(column - middle)
        left, right = slice(0, max(0, width - shift)), slice(shift, None)
        if column < middle:
            one[:, :, left].add_(sums[:, :, right, column]).add_(differences[:, :, right, column])
            other[:, :, right].add_(sums[:, :, left, column]).sub_(differences[:, :, left, column])
        elif column > middle:
            one[:, :, right].add_(sums[:, :, left, column]).add_(differences[:, :, left, column])
            other[:, :, left].add_(sums[:, :, right, column]).sub_(differences[:, :, right, column])


def block_gradient(folded: Tensor, gradient: Tensor, kernel: int) -> Tensor:
    """(2, O, I, K, K), by matrix products, quicker than the convolution's own gradient (benchmarks/LOG.md)."""
    height, middle = gradient.shape[2], kernel // 2
    y = F.pad(gradient.permute(0, 2, 3, 1), (0, 0, 0, 0, middle, middle)).unflatten(3, (2, -1))
    rows = torch.stack([y[:, kernel - 1 - row :][:, :height] for row in range(kernel)], 4).flatten(4).flatten(0, 2)
    pixels = folded.permute(0, 2, 3, 1).unflatten(3, (2, -1)).flatten(0, 2)
    products = torch.stack([rows[:, block].T @ pixels[:, block] for block in range(2)]) / 2
    blocks: Tensor = products.unflatten(2, (kernel, -1)).unflatten(1, (kernel, -1)).permute(0, 2, 4, 1, 3)
    return blocks
