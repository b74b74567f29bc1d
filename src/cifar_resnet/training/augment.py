"""Per-image augmentation of a batch: uint8 (N, 3, H, W) in, uint8 out, all randomness from an explicit generator."""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode, TrivialAugmentWide

TRIVIAL_AUGMENT = TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)


def flip_left_right(images: Tensor, mask: Tensor) -> Tensor:
    """Flip the images where `mask`, bool (N,), is true."""
    return torch.where(mask.view(-1, 1, 1, 1), images.flip(-1), images)


def crop(padded: Tensor, size: int, generator: Generator) -> Tensor:
    """Cut a square of `size` pixels out of every image, each at its own random position.

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


def trivial_augment(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Apply one random operation of random strength to each image, with the given probability.

    Source: Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", 2021.

    Args:
        images: uint8 (N, 3, H, W).
        probability: 0 to 1, for each image.
    """
    if probability == 0:
        return images
    images = images.clone()
    mask = torch.rand(len(images), generator=generator) < probability
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        for row in mask.nonzero().flatten():
            images[row] = TRIVIAL_AUGMENT(images[row])
    return images
