"""Per-image augmentation of a batch, uint8 (N, 3, H, W) to uint8; all randomness comes from an explicit generator."""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode, TrivialAugmentWide

PATCH_SIDES = (0.3, 1.0)  # smallest and largest side of a patch of noise, as a share of the image's
TRIVIAL_AUGMENT = TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)


def flip_left_right(images: Tensor, mask: Tensor) -> Tensor:
    """Flip the images where `mask`, bool (N,), is true."""
    return torch.where(mask.view(-1, 1, 1, 1), images.flip(-1), images)


def crop(padded: Tensor, size: int, generator: Generator) -> Tensor:
    """Cut a square of `size` pixels per side out of each image, at a random position.

    Args:
        padded: (N, C, S, S) with S >= size, from `reflect_pad`.
    """
    num_positions = padded.shape[-1] - size + 1
    if num_positions == 1:
        return padded
    shifts = torch.randint(num_positions, (2, len(padded)), generator=generator)
    window = torch.arange(size)
    rows = (shifts[0, :, None] + window)[:, :, None]
    columns = (shifts[1, :, None] + window)[:, None, :]
    cropped: Tensor = padded.permute(0, 2, 3, 1)[torch.arange(len(padded))[:, None, None], rows, columns]
    return cropped.permute(0, 3, 1, 2)


def cutout(images: Tensor, side: int, fill: Tensor, generator: Generator) -> Tensor:
    """Erase a random square of each image; all of the square lies inside the image.

    Source: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017.

    Args:
        side: of the square, in pixels; 0 erases nothing.
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
    """Antialiased bilinear resizing to `size` pixels per side."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def add_noise(images: Tensor, max_std: float, probability: float, generator: Generator) -> Tensor:
    """Add Gaussian noise to a random square patch of some images; the patch may reach beyond the border.

    Source: Lopes et al., "Improving Robustness Without Sacrificing Accuracy with Patch Gaussian Augmentation", 2019.

    Args:
        images: uint8 (N, 3, H, H), left unchanged.
        max_std: each patch's standard deviation is uniform between 0 and this share of the value range.
        probability: 0 to 1, of each image to be changed.
    """
    if probability == 0:
        return images
    rows = (torch.rand(len(images), generator=generator) < probability).nonzero().flatten()
    std = 255 * max_std * torch.rand(len(rows), 1, 1, 1, generator=generator)
    noise = std * torch.randn(len(rows), *images.shape[1:], generator=generator)
    noisy = images[rows] + noise * patches(len(rows), images.shape[-1], generator)
    images = images.clone()
    images[rows] = noisy.round().clamp(0, 255).to(torch.uint8)
    return images


def patches(count: int, size: int, generator: Generator) -> Tensor:
    """Random squares as bool (count, 1, size, size); their centers lie in the image, their sides are PATCH_SIDES."""
    low, high = PATCH_SIDES
    sides = size * (low + (high - low) * torch.rand(count, 1, generator=generator))
    centers = size * torch.rand(2, count, 1, generator=generator)
    inside = (torch.arange(size) + 0.5 - centers).abs() <= sides / 2
    return (inside[0, :, :, None] & inside[1, :, None, :]).unsqueeze(1)


def trivial_augment(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Apply one random operation of random strength to each image, with the given probability.

    Source: Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", 2021.

    Args:
        images: uint8 (N, 3, H, W), left unchanged.
        probability: 0 to 1, of each image to be changed.
    """
    if probability == 0:
        return images
    images = images.clone()
    mask = torch.rand(len(images), generator=generator) < probability
    with torch.random.fork_rng(devices=[]):  # torchvision uses torch's global generator
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        for index in mask.nonzero().flatten():
            images[index] = TRIVIAL_AUGMENT(images[index])
    return images
