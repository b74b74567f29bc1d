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
        y = x.new_empty(len(x), *x.shape[2:], 2 * blocks.shape[1]).permute(0, 3, 1, 2)
        for images, out in in_parts(kernel, x, y):
            sums_and_differences(*convolve(fold(images, kernel), filters), *halves(out))
        return y

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        x, blocks = context.saved_tensors
        kernel, filters = blocks.shape[-1], as_filters(blocks).transpose(1, 2).flip(3).contiguous()
        of_x = torch.empty_like(x)
        of_blocks = torch.zeros_like(blocks, dtype=torch.promote_types(x.dtype, torch.float32))
        for images, y, out in in_parts(kernel, x, gradient, of_x):
            one, other = halves(y)
            of_halves = y.new_empty(2, *one.shape)
            sums_and_differences(one, other, *of_halves)
            of_blocks += block_gradient(fold(images, kernel), of_halves, kernel)
            if context.needs_input_grad[0]:
                unfold(convolve(of_halves, filters), kernel, *halves(out))
        return of_x if context.needs_input_grad[0] else None, of_blocks.to(blocks.dtype)


def in_parts(kernel: int, x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some images at a time of x and of what belongs to them."""
    size = max(1, FOLDED // (kernel * x.shape[1:].numel()))
    parts = zip(*(each.split(size) for each in (x, *others)), strict=True)
    return parts if len(x) else iter(())


def halves(x: Tensor) -> tuple[Tensor, ...]:
    """Views of (N, 2 C, H, W) as two (H, N, W, C): the channels of a pair, with the images side by side."""
    return x.permute(2, 0, 3, 1).chunk(2, dim=3)


def as_filters(blocks: Tensor) -> Tensor:
    """(2, O, I, K, K) -> (2, O, K I, K, 1), halved, for what is folded."""
    return (blocks / 2).permute(0, 1, 4, 2, 3).flatten(2, 3).unsqueeze(-1).contiguous()


def convolve(folded: Tensor, filters: Tensor) -> list[Tensor]:
    """(2, H, N, W, C) with (2, O, C, K, 1) to two (H, N, W, O). Filters one pixel wide may take images side by side for
    a single wide one, in whose long rows oneDNN is quicker."""
    wide = folded.flatten(2, 3).unsqueeze(1).permute(0, 1, 4, 2, 3)
    padding = (filters.shape[3] // 2, 0)
    y = [F.conv2d(image, block, padding=padding) for image, block in zip(wide, filters, strict=True)]
    return [each[0].permute(1, 2, 0).unflatten(1, folded.shape[2:4]) for each in y]


def sums_and_differences(one: Tensor, other: Tensor, sums: Tensor, differences: Tensor) -> None:
    torch.add(one, other, out=sums)
    torch.sub(one, other, out=differences)


def fold(x: Tensor, kernel: int) -> Tensor:
    """(N, 2 I, H, W) -> (2, H, N, W, K I): of each of K columns about a pixel the one half of the channels plus, then
    minus, the other half of the column that mirrors it, with zeros beyond the border."""
    width = x.shape[3]
    one, other = halves(F.pad(x, (kernel // 2, kernel // 2)))
    folded = x.new_empty(2, *one.shape[:2], width, kernel, one.shape[3])
    for column in range(kernel):
        mirror = kernel - 1 - column
        sums_and_differences(
            one[:, :, column:][:, :, :width], other[:, :, mirror:][:, :, :width], *folded[:, :, :, :, column]
        )
    return folded.flatten(4)


def unfold(gradient: list[Tensor], kernel: int, one: Tensor, other: Tensor) -> None:
    """The gradient of `fold`'s input, by halves, from that of its output."""
    sums, differences = (each.unflatten(3, (kernel, -1)) for each in gradient)
    middle, width = kernel // 2, one.shape[2]
    sums_and_differences(sums[:, :, :, middle], differences[:, :, :, middle], one, other)
    for column in range(kernel):
        if column != middle:
            to, back = inside(column - middle, width), inside(middle - column, width)
            one[:, :, to].add_(sums[:, :, back, column]).add_(differences[:, :, back, column])
            other[:, :, back].add_(sums[:, :, to, column]).sub_(differences[:, :, to, column])


def inside(shift: int, size: int) -> slice:
    """Where what was shifted by so much lies among so many."""
    return slice(max(0, shift), max(0, size + min(0, shift)))


def block_gradient(folded: Tensor, gradient: Tensor, kernel: int) -> Tensor:
    """(2, O, I, K, K), by matrix products, quicker than the convolution's own gradient (benchmarks/LOG.md)."""
    height, middle = folded.shape[1], kernel // 2
    rows = [(inside(row - middle, height), inside(middle - row, height)) for row in range(kernel)]
    products = [
        y[of_y].flatten(0, 2).T @ x[of_x].flatten(0, 2)
        for x, y in zip(folded, gradient, strict=True)
        for of_x, of_y in rows
    ]
    blocks: Tensor = torch.stack(products).unflatten(0, (2, kernel)).unflatten(3, (kernel, -1))
    return blocks.permute(0, 2, 4, 1, 3) / 2
