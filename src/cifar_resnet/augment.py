"""Per-image augmentation of a batch: uint8 (N, 3, H, W) in, uint8 out, all randomness from an explicit generator."""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror left-right the images that `chosen`, bool (N,), picks."""
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(-1), images)


def reflect_pad(images: Tensor, pixels: int) -> Tensor:
    """Images grown by `pixels` on every side, mirrored at the border."""
    if pixels == 0:
        return images
    around = torch.arange(-pixels, images.shape[-1] + pixels)
    last = images.shape[-1] - 1
    rows = last - (last - around.abs()).abs()
    return images[:, :, rows][:, :, :, rows]


def crop(padded: Tensor, size: int, generator: Generator) -> Tensor:
    """Crop every image at its own random place.

    Args:
        padded: (N, C, S, S) with S >= size, from `reflect_pad`.
    """
    room = padded.shape[-1] - size + 1
    if room == 1:
        return padded
    shifts = torch.randint(room, (2, len(padded)), generator=generator)
    window = torch.arange(size)
    rows = (shifts[0, :, None] + window)[:, :, None]
    columns = (shifts[1, :, None] + window)[:, None, :]
    picked: Tensor = padded.permute(0, 2, 3, 1)[torch.arange(len(padded))[:, None, None], rows, columns]
    return picked.permute(0, 3, 1, 2)


def cutout(images: Tensor, side: int, fill: Tensor, generator: Generator) -> Tensor:
    """Erase a random square of every image (DeVries and Taylor, 2017), wholly inside it.

    Args:
        fill: uint8 (3,), the colour of the square.
    """
    if side == 0:
        return images
    size = images.shape[-1]
    corners = torch.randint(size - side + 1, (2, len(images), 1), generator=generator)
    inside = (torch.arange(size) >= corners) & (torch.arange(size) < corners + side)
    square = inside[0, :, None, :, None] & inside[1, :, None, None, :]
    return torch.where(square, fill.view(1, 3, 1, 1), images)


def resize(images: Tensor, size: int) -> Tensor:
    """Antialiased bilinear resizing to `size` pixels a side."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
