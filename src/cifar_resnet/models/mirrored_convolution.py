"""Reflection-equivariant convolution: mirroring the input mirrors the output and swaps the halves of its channels.

Half of the filters are mirror images of the other half. Split into even and odd parts under the reflection, the matrix
of all filters is block-diagonal: two blocks, each half as wide and half as high. This takes half the multiply-adds and
half the parameters of an ordinary convolution with as many filters.

On CPUs with AMX (Intel's matrix instructions), a small layer is faster as an ordinary convolution. It takes twice the
multiply-adds, but no time to split images into even and odd parts.

Source: Cohen and Welling, "Group Equivariant Convolutional Networks", 2016, here for the group of one reflection.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cifar_resnet.models.convolution import convolve, uses_amx

MAX_FOLDED_VALUES = 4_000_000  # a chunk of this size stays in the CPU's cache
MAX_WHOLE_FILTERS = 65_536  # inputs times outputs of a layer that AMX computes without the blocks (benchmarks/LOG.md)


class MirroredConvolution(nn.Conv2d):
    """Reflection-equivariant convolution, stride 1, "same" padding, without bias.

    Channel c + C / 2 is the mirror image of channel c, in the input (C = `inputs`) and in the output (C = `outputs`).

    The parameters are the two blocks, both (O / 2, I / 2, K, K): `weight` acts on the even part of a patch, `odd` on
    the odd part. Muon orthogonalizes each block as a matrix of its own.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs // 2, outputs // 2, kernel, padding=kernel // 2, bias=False)
        self.odd = nn.Parameter(torch.empty_like(self.weight))
        nn.init.kaiming_uniform_(self.odd, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        if uses_amx(x) and 4 * self.in_channels * self.out_channels <= MAX_WHOLE_FILTERS:
            filters = whole_filters(self.weight, self.odd).to(x.dtype)
            return convolve(x, filters, (1, 1), self.kernel_size[0] // 2, training=self.training)
        y: Tensor = FoldedConvolution.apply(x, torch.stack([self.weight, self.odd]).to(x.dtype))
        return y


def whole_filters(even: Tensor, odd: Tensor) -> Tensor:
    """The filters (2 O, 2 I, K, K) of the ordinary convolution that computes the same.

    The first half of the outputs is (E + D) / 2 of the first half of the inputs plus the mirror image of (E - D) / 2 of
    the second half, with E = `even` and D = `odd`. The second half of the outputs is the mirror image of the first.
    """
    same, other = (even + odd) / 2, (even - odd) / 2
    return torch.cat([torch.cat([same, other.flip(-1)], 1), torch.cat([other, same.flip(-1)], 1)])


class FoldedConvolution(torch.autograd.Function):
    """Convolution of x (N, 2 I, H, W), channels last, with blocks (2, O, I, K, K) to (N, 2 O, H, W).

    Works on a few images at a time, so that the even and odd parts need little memory.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, blocks: Tensor) -> Tensor:
        context.save_for_backward(x, blocks)
        kernel, filters = blocks.shape[-1], folded_filters(blocks)
        y = x.new_empty(len(x), *x.shape[2:], 2 * blocks.shape[1]).permute(0, 3, 1, 2)
        for images, out in split_images(kernel, x, y):
            sum_and_difference(*convolve_parts(fold(images, kernel), filters), *channel_halves(out))
        return y

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        x, blocks = context.saved_tensors
        kernel, filters = blocks.shape[-1], folded_filters(blocks).transpose(1, 2).flip(3).contiguous()
        x_gradient = torch.empty_like(x)
        blocks_gradient = torch.zeros_like(blocks, dtype=torch.promote_types(x.dtype, torch.float32))
        for images, y_gradient, out in split_images(kernel, x, gradient, x_gradient):
            first, second = channel_halves(y_gradient)
            folded_gradient = y_gradient.new_empty(2, *first.shape)
            sum_and_difference(first, second, *folded_gradient)
            blocks_gradient += block_gradient(fold(images, kernel), folded_gradient, kernel)
            if context.needs_input_grad[0]:
                unfold_gradient(convolve_parts(folded_gradient, filters), kernel, *channel_halves(out))
        return x_gradient if context.needs_input_grad[0] else None, blocks_gradient.to(blocks.dtype)


def split_images(kernel: int, x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield x, and all other tensors with it, in chunks of images that fold to at most `MAX_FOLDED_VALUES` values."""
    size = max(1, MAX_FOLDED_VALUES // (kernel * x.shape[1:].numel()))
    chunks = zip(*(tensor.split(size) for tensor in (x, *others)), strict=True)
    return chunks if len(x) else iter(())


def channel_halves(x: Tensor) -> tuple[Tensor, ...]:
    """Views of both halves of the channels: (N, 2 C, H, W) -> two (H, N, W, C), with the images side by side."""
    return x.permute(2, 0, 3, 1).chunk(2, dim=3)


def folded_filters(blocks: Tensor) -> Tensor:
    """Half of the blocks in the layout that `convolve_parts` takes: (2, O, I, K, K) -> (2, O, K I, K, 1)."""
    return (blocks / 2).permute(0, 1, 4, 2, 3).flatten(2, 3).unsqueeze(-1).contiguous()


def convolve_parts(folded: Tensor, filters: Tensor) -> list[Tensor]:
    """Convolve (2, H, N, W, C) with filters (2, O, C, K, 1) to two (H, N, W, O).

    The filters are one pixel wide, so all images can be one wide image. oneDNN is faster on its long rows.
    """
    wide_images = folded.flatten(2, 3).unsqueeze(1).permute(0, 1, 4, 2, 3)
    padding = (filters.shape[3] // 2, 0)
    outputs = [F.conv2d(image, block, padding=padding) for image, block in zip(wide_images, filters, strict=True)]
    return [y[0].permute(1, 2, 0).unflatten(1, folded.shape[2:4]) for y in outputs]


def sum_and_difference(a: Tensor, b: Tensor, out_sum: Tensor, out_difference: Tensor) -> None:
    torch.add(a, b, out=out_sum)
    torch.sub(a, b, out=out_difference)


def fold(x: Tensor, kernel: int) -> Tensor:
    """Even and odd parts of all patches: (N, 2 I, H, W) -> (2, H, N, W, K I).

    For each of the K columns around a pixel: the first half of the channels plus (even) or minus (odd) the second half
    in the mirror column, with zeros beyond the border.
    """
    width = x.shape[3]
    first, second = channel_halves(F.pad(x, (kernel // 2, kernel // 2)))
    folded = x.new_empty(2, *first.shape[:2], width, kernel, first.shape[3])
    for column in range(kernel):
        mirror = kernel - 1 - column
        sum_and_difference(
            first[:, :, column:][:, :, :width], second[:, :, mirror:][:, :, :width], *folded[:, :, :, :, column]
        )
    return folded.flatten(4)


def unfold_gradient(gradient: list[Tensor], kernel: int, out_first: Tensor, out_second: Tensor) -> None:
    """Write the gradient of `fold`'s input, in channel halves, from the gradient of its output."""
    even, odd = (part.unflatten(3, (kernel, -1)) for part in gradient)
    middle, width = kernel // 2, out_first.shape[2]
    sum_and_difference(even[:, :, :, middle], odd[:, :, :, middle], out_first, out_second)
    for column in range(kernel):
        if column != middle:
            to, back = overlap(column - middle, width), overlap(middle - column, width)
            out_first[:, :, to].add_(even[:, :, back, column]).add_(odd[:, :, back, column])
            out_second[:, :, back].add_(even[:, :, to, column]).sub_(odd[:, :, to, column])


def overlap(shift: int, size: int) -> slice:
    """The part of range(size) that the same range, moved by `shift`, covers."""
    return slice(max(0, shift), max(0, size + min(0, shift)))


def block_gradient(folded: Tensor, gradient: Tensor, kernel: int) -> Tensor:
    """Gradient of the blocks (2, O, I, K, K) by matrix products; conv2d's own is slower (benchmarks/LOG.md)."""
    height, middle = folded.shape[1], kernel // 2
    rows = [(overlap(row - middle, height), overlap(middle - row, height)) for row in range(kernel)]
    products = [
        y[y_rows].flatten(0, 2).T @ x[x_rows].flatten(0, 2)
        for x, y in zip(folded, gradient, strict=True)
        for x_rows, y_rows in rows
    ]
    blocks: Tensor = torch.stack(products).unflatten(0, (2, kernel)).unflatten(3, (kernel, -1))
    return blocks.permute(0, 2, 4, 1, 3) / 2
