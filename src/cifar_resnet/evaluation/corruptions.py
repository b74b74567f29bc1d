"""Common corruptions of images, and the accuracy that they leave: noise, blur, weather and digital ones, three of each
family, in five severities.

After D. Hendrycks and T. Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
2019: the kinds and, where a number means the same, the strengths of CIFAR-10-C. The code is our own and works on whole
batches, so accuracies are comparable among our models, not digit by digit with those published on CIFAR-10-C.

A corruption takes images float (N, 3, 32, 32) from 0 to 1, its strength and a generator, and returns such images;
values outside 0 to 1 are cut off afterwards.
"""

import math
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor

from cifar_resnet.data.dataset import Images, Labels, Pixels

SEVERITIES = 5


def gaussian_noise(images: Tensor, deviation: float, generator: Generator) -> Tensor:
    return images + deviation * torch.randn(images.shape, generator=generator)


def shot_noise(images: Tensor, photons: float, generator: Generator) -> Tensor:
    """As if white were `photons` in the mean."""
    return torch.poisson(images * photons, generator) / photons


def impulse_noise(images: Tensor, share: float, generator: Generator) -> Tensor:
    """Salt and pepper: that share of the values becomes 0 or 1."""
    drawn = torch.rand(images.shape, generator=generator)
    return torch.where(drawn < share, (drawn < share / 2).float(), images)


def defocus_blur(images: Tensor, strength: tuple[float, float], _: Generator) -> Tensor:
    """A disk of the given radius, itself softened by a Gaussian of the given deviation, both in pixels."""
    radius, deviation = strength
    place = torch.arange(-3.0, 4.0)
    squares = place[:, None] ** 2 + place**2
    disk, soft = (squares <= radius**2).float(), torch.exp(-squares / (2 * deviation**2))
    kernel = F.conv2d(disk[None, None], (soft / soft.sum())[None, None], padding=3)
    return F.conv2d(
        F.pad(images, (3, 3, 3, 3), "reflect"), (kernel / kernel.sum()).expand(3, 1, 7, 7).contiguous(), groups=3
    )


def motion_blur(images: Tensor, deviation: float, generator: Generator) -> Tensor:
    """A movement of each image in its own direction within 45 degrees of level, fading as half a Gaussian."""
    angles = (torch.rand(len(images), generator=generator) - 0.5) * math.pi / 2
    return smear(images, deviation, angles)


def smear(images: Tensor, deviation: float, angles: Tensor) -> Tensor:
    """Images (N, C, H, W) that moved in the directions `angles` (N,), in radians."""
    steps = torch.arange(math.ceil(3 * deviation) + 1.0)
    weights = torch.exp(-(steps**2) / (2 * deviation**2))
    total = torch.zeros_like(images)
    for step, weight in zip(steps.tolist(), (weights / weights.sum()).tolist(), strict=True):
        total += weight * zoom_and_shift(images, 1.0, step * torch.stack([angles.cos(), angles.sin()], dim=1))
    return total


def zoom_and_shift(images: Tensor, zoom: float, shifts: Tensor) -> Tensor:
    """Images magnified about their middle and shifted by (N, 2) pixels right and down, mirrored at the border."""
    places = torch.zeros(len(images), 2, 3)
    places[:, 0, 0] = places[:, 1, 1] = 1 / zoom
    places[:, :, 2] = -2 * shifts / images.shape[-1]
    grid = F.affine_grid(places, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def zoom_blur(images: Tensor, most: float, _: Generator) -> Tensor:
    """The mean of views magnified by 1, 1.01, 1.02 and so on up to `most`."""
    zooms = torch.arange(1.0, most + 0.005, 0.01).tolist()
    still = torch.zeros(len(images), 2)
    return torch.stack([zoom_and_shift(images, zoom, still) for zoom in zooms]).mean(dim=0)


def fog(images: Tensor, strength: tuple[float, float], generator: Generator) -> Tensor:
    """Clouds of the given thickness whose amplitude falls by `decay` with every octave; the brightest value stays."""
    thickness, decay = strength
    frequencies = torch.hypot(torch.fft.fftfreq(32)[:, None], torch.fft.rfftfreq(32)).clamp(min=1 / 32)
    noise = torch.randn((len(images), 1, 32, 32), generator=generator)
    clouds = torch.fft.irfft2(torch.fft.rfft2(noise) * frequencies ** -(1 + math.log2(decay)), s=(32, 32))
    clouds = clouds - clouds.amin(dim=(2, 3), keepdim=True)
    clouds = clouds / clouds.amax(dim=(2, 3), keepdim=True)
    brightest = images.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1 / 255)
    foggy: Tensor = (images + thickness * clouds) * brightest / (brightest + thickness)
    return foggy


def snow(images: Tensor, strength: tuple[float, float, float, float, float], generator: Generator) -> Tensor:
    """Flakes, the part of normal noise (mean, deviation) above a threshold, that fall steeply and leave traces
    (deviation in pixels), on a picture that keeps a share of its own light and is greyed for the rest."""
    mean, deviation, threshold, trace, kept = strength
    flakes = mean + deviation * torch.randn((len(images), 1, 32, 32), generator=generator)
    angles = (torch.rand(len(images), generator=generator) + 0.5) * math.pi / 2
    flakes = smear(torch.where(flakes > threshold, flakes, 0.0).clamp(0, 1), trace, angles)
    grey = images.mean(dim=1, keepdim=True) * 1.5 + 0.5
    return kept * images + (1 - kept) * torch.maximum(images, grey) + flakes + flakes.flip((2, 3))


def brightness(images: Tensor, more: float, _: Generator) -> Tensor:
    """Adds to the value of hue, saturation and value: the largest channel grows by `more`, the others in proportion."""
    value = images.amax(dim=1, keepdim=True).clamp(min=1 / 255)
    return images * ((value + more).clamp(max=1) / value)


def contrast(images: Tensor, kept: float, _: Generator) -> Tensor:
    """The share `kept` of every value's distance from its channel's mean."""
    mean = images.mean(dim=(2, 3), keepdim=True)
    return mean + kept * (images - mean)


def pixelate(images: Tensor, side: int, _: Generator) -> Tensor:
    """As if it had `side` x `side` pixels."""
    edges = torch.arange(side + 1) * (32 / side)
    left, right = torch.arange(32.0), torch.arange(1.0, 33)
    overlap = (torch.minimum(edges[1:, None], right) - torch.maximum(edges[:-1, None], left)).clamp(min=0)
    mean = overlap / overlap.sum(dim=1, keepdim=True)
    return F.interpolate(mean @ images @ mean.T, size=32, mode="nearest-exact")


def jpeg(images: Tensor, quality: int, _: Generator) -> Tensor:
    """Stored as JPEG of that quality and read again."""
    found = []
    for image in (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
        stream = BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=quality)
        with Image.open(stream) as stored:
            found.append(np.asarray(stored.convert("RGB")))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2) / 255


CORRUPTIONS: dict[str, tuple[Callable[[Tensor, Any, Generator], Tensor], tuple[Any, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))),
    "motion_blur": (motion_blur, (1.0, 1.5, 2.0, 2.25, 2.5)),
    "zoom_blur": (zoom_blur, (1.05, 1.10, 1.15, 1.20, 1.25)),
    "fog": (fog, ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))),
    "snow": (snow, ((0.1, 0.2, 0.6, 3, 0.95), (0.1, 0.2, 0.5, 4, 0.9), (0.15, 0.3, 0.55, 4, 0.9),
                    (0.25, 0.3, 0.6, 6, 0.85), (0.3, 0.3, 0.65, 12, 0.8))),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": (pixelate, (30, 28, 27, 24, 20)),
    "jpeg": (jpeg, (80, 65, 58, 50, 40)),
}  # fmt: skip


def corrupt(pixels: Pixels, name: str, severity: int, *, seed: int = 0) -> Pixels:
    """uint8 (N, 3, 32, 32) with the corruption at `severity` 1 to 5; the same seed gives the same images."""
    function, strengths = CORRUPTIONS[name]
    generator = Generator().manual_seed(seed * 1009 + 10 * list(CORRUPTIONS).index(name) + severity)
    found = function(torch.from_numpy(pixels) / 255, strengths[severity - 1], generator)
    corrupted: Pixels = (found.clamp(0, 1) * 255).round().to(torch.uint8).contiguous().numpy()
    return corrupted


def balanced_subset(labels: Labels, per_class: int, *, seed: int = 0) -> NDArray[np.intp]:
    """Rows of `per_class` random images of every class, the same for the same seed; all of a class that has fewer."""
    random = np.random.default_rng(seed)
    rows = [random.permutation(np.flatnonzero(labels == label))[:per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(rows))


def corruption_accuracies(answer: Callable[..., Tensor], images: Images, *, batch_size: int) -> NDArray[np.float64]:
    """Accuracy (C, S) under the C corruptions, in the order of CORRUPTIONS, at severities 1 to S.

    Args:
        answer: logits (N, 10) of uint8 (N, 3, 32, 32) and `batch_size`.
    """
    found = np.empty((len(CORRUPTIONS), SEVERITIES))
    for row, name in enumerate(CORRUPTIONS):
        for column in range(SEVERITIES):
            logits = answer(corrupt(images.pixels, name, column + 1), batch_size=batch_size)
            found[row, column] = (logits.argmax(dim=1).numpy() == images.labels).mean()
    return found
