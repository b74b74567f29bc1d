"""Random distortions of images, by torchvision; apart from `augment`, so that a served model does without it."""

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode, TrivialAugmentWide

DISTORTION = TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)


def trivial_augment(images: Tensor, share: float, generator: Generator) -> Tensor:
    """Distort or recolour a random share of the images, each by one random operation of random strength.

    Source: Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", 2021.

    Args:
        images: uint8 (N, 3, H, W).
        share: from 0 to 1, each image's chance.
    """
    if share == 0:
        return images
    images = images.clone()
    chosen = torch.rand(len(images), generator=generator) < share
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        for row in chosen.nonzero().flatten():
            images[row] = DISTORTION(images[row])
    return images
