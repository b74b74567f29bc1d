"""Twelve common corruptions of images at five severities, and the accuracy under them.

Three corruptions each are noise, blur, weather and digital. The kinds are those of CIFAR-10-C: D. Hendrycks and
T. Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", 2019. The strengths are
the same where a parameter has the same meaning. The code is our own and works on batches. Compare accuracies among
models of this project, not with results published for CIFAR-10-C.

A corruption takes float images (N, 3, 32, 32) between 0 and 1, its strength and a generator. It returns images of the
same shape; `corrupt` clips them to 0 to 1.
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


def gaussian_noise(images: Tensor, std: float, generator: Generator) -> Tensor:
    return images + std * torch.randn(images.shape, generator=generator)


def shot_noise(images: Tensor, photons: float, generator: Generator) -> Tensor:
    """Poisson noise of a sensor that counts `photons` photons, on average, for white."""
    return torch.poisson(images * photons, generator) / photons


def impulse_noise(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Salt and pepper: every value becomes 0 or 1 with that probability."""
    uniform = torch.rand(images.shape, generator=generator)
    return torch.where(uniform < probability, (uniform < probability / 2).float(), images)


def defocus_blur(images: Tensor, strength: tuple[float, float], _: Generator) -> Tensor:
    """Convolution with a disk of radius strength[0], smoothed by a Gaussian of std strength[1], both in pixels."""
    radius, std = strength
    offsets = torch.arange(-3.0, 4.0)
    squares = offsets[:, None] ** 2 + offsets**2
    disk, gaussian = (squares <= radius**2).float(), torch.exp(-squares / (2 * std**2))
    kernel = F.conv2d(disk[None, None], (gaussian / gaussian.sum())[None, None], padding=3)
    return F.conv2d(
        F.pad(images, (3, 3, 3, 3), "reflect"), (kernel / kernel.sum()).expand(3, 1, 7, 7).contiguous(), groups=3
    )


def motion_blur(images: Tensor, std: float, generator: Generator) -> Tensor:
    """Blur along a random direction per image, within 45 degrees of horizontal; `std` in pixels."""
    angles = (torch.rand(len(images), generator=generator) - 0.5) * math.pi / 2
    return directional_blur(images, std, angles)


def directional_blur(images: Tensor, std: float, angles: Tensor) -> Tensor:
    """Mean of images (N, C, H, W) shifted along `angles` (N,), in radians; the weights are half a Gaussian."""
    steps = torch.arange(math.ceil(3 * std) + 1.0)
    weights = torch.exp(-(steps**2) / (2 * std**2))
    total = torch.zeros_like(images)
    for step, weight in zip(steps.tolist(), (weights / weights.sum()).tolist(), strict=True):
        total += weight * zoom_and_shift(images, 1.0, step * torch.stack([angles.cos(), angles.sin()], dim=1))
    return total


def zoom_and_shift(images: Tensor, zoom: float, shifts: Tensor) -> Tensor:
    """Images magnified about their center and shifted right and down by (N, 2) pixels, reflected at the border."""
    matrices = torch.zeros(len(images), 2, 3)
    matrices[:, 0, 0] = matrices[:, 1, 1] = 1 / zoom
    matrices[:, :, 2] = -2 * shifts / images.shape[-1]
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def zoom_blur(images: Tensor, max_zoom: float, _: Generator) -> Tensor:
    """Mean of views magnified by 1, 1.01, 1.02 and so on up to `max_zoom`."""
    zooms = torch.arange(1.0, max_zoom + 0.005, 0.01).tolist()
    no_shift = torch.zeros(len(images), 2)
    return torch.stack([zoom_and_shift(images, zoom, no_shift) for zoom in zooms]).mean(dim=0)


def fog(images: Tensor, strength: tuple[float, float], generator: Generator) -> Tensor:
    """Clouds of a given thickness whose amplitude falls by the factor `decay` per octave; keeps the brightest value.

    `strength` is (thickness, decay).
    """
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
    """Flakes with steep motion blur, over an image that is partly replaced by a lighter grey version.

    `strength` is (mean, std, threshold, blur_std, weight). Flakes are the normal noise (mean, std) above the threshold;
    `blur_std` is the std of their blur in pixels; `weight` is the weight of the original image.
    """
    mean, std, threshold, blur_std, weight = strength
    flakes = mean + std * torch.randn((len(images), 1, 32, 32), generator=generator)
    angles = (torch.rand(len(images), generator=generator) + 0.5) * math.pi / 2
    flakes = directional_blur(torch.where(flakes > threshold, flakes, 0.0).clamp(0, 1), blur_std, angles)
    grey = images.mean(dim=1, keepdim=True) * 1.5 + 0.5
    return weight * images + (1 - weight) * torch.maximum(images, grey) + flakes + flakes.flip((2, 3))


def brightness(images: Tensor, increase: float, _: Generator) -> Tensor:
    """Higher value (V of HSV): the largest channel grows by `increase`, the others in proportion."""
    value = images.amax(dim=1, keepdim=True).clamp(min=1 / 255)
    return images * ((value + increase).clamp(max=1) / value)


def contrast(images: Tensor, factor: float, _: Generator) -> Tensor:
    """Multiplies the difference of every value from its channel's mean by `factor`."""
    mean = images.mean(dim=(2, 3), keepdim=True)
    return mean + factor * (images - mean)


def pixelate(images: Tensor, side: int, _: Generator) -> Tensor:
    """Area interpolation to `side` x `side` pixels, then nearest-neighbour interpolation back to 32 x 32."""
    edges = torch.arange(side + 1) * (32 / side)
    left, right = torch.arange(32.0), torch.arange(1.0, 33)
    overlap = (torch.minimum(edges[1:, None], right) - torch.maximum(edges[:-1, None], left)).clamp(min=0)
    mean = overlap / overlap.sum(dim=1, keepdim=True)
    return F.interpolate(mean @ images @ mean.T, size=32, mode="nearest-exact")


def jpeg(images: Tensor, quality: int, _: Generator) -> Tensor:
    """JPEG compression with Pillow at that quality, 0 to 100."""
    decoded = []
    for image in (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
        stream = BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=quality)
        with Image.open(stream) as stored:
            decoded.append(np.asarray(stored.convert("RGB")))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2) / 255


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
    """Corrupt images uint8 (N, 3, 32, 32) at `severity` 1 to 5; the same seed gives the same result."""
    function, strengths = CORRUPTIONS[name]
    generator = Generator().manual_seed(seed * 1009 + 10 * list(CORRUPTIONS).index(name) + severity)
    images = function(torch.from_numpy(pixels) / 255, strengths[severity - 1], generator)
    corrupted: Pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).contiguous().numpy()
    return corrupted


def balanced_subset(labels: Labels, per_class: int, *, seed: int = 0) -> NDArray[np.intp]:
    """Sorted rows of `per_class` random images of every class, or of all images in a smaller class."""
    random = np.random.default_rng(seed)
    rows = [random.permutation(np.flatnonzero(labels == label))[:per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(rows))


def corruption_accuracies(predict_fn: Callable[..., Tensor], images: Images, *, batch_size: int) -> NDArray[np.float64]:
    """Accuracy (12, 5) under the corruptions, in the order of CORRUPTIONS, at severities 1 to 5.

    Args:
        predict_fn: called with uint8 (N, 3, 32, 32) and `batch_size`; returns logits (N, C).
    """
    accuracies = np.empty((len(CORRUPTIONS), SEVERITIES))
    for row, name in enumerate(CORRUPTIONS):
        for column in range(SEVERITIES):
            logits = predict_fn(corrupt(images.pixels, name, column + 1), batch_size=batch_size)
            accuracies[row, column] = (logits.argmax(dim=1).numpy() == images.labels).mean()
    return accuracies
