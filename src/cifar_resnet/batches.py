"""Batches of training images: order and augmentation are functions of (seed, epoch), so no generator state is kept."""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from cifar_resnet import augment
from cifar_resnet.distortion import trivial_augment
from cifar_resnet.distributed import World
from cifar_resnet.images import Images
from cifar_resnet.params import TrainParams


class Batches:
    """All steps of an epoch, from images that lie in memory once, padded.

    Args:
        images: what to train on.
        params: batch size, augmentation, resolution and seed.
        world: who trains; each process yields its own rows of every batch.
    """

    def __init__(self, images: Images, params: TrainParams, world: World) -> None:
        self.params = params
        self.world = world
        self.batch_size = min(params.batch_size, len(images)) // world.size * world.size
        pixels = torch.from_numpy(images.pixels)
        self.padded = augment.reflect_pad(pixels, params.translation).contiguous(memory_format=torch.channels_last)
        self.labels = torch.from_numpy(images.labels)
        self.fill = (pixels.sum(dim=(0, 2, 3)) / pixels[:, 0].numel()).round().to(torch.uint8)

    def __len__(self) -> int:
        """Steps in an epoch; images that do not fill a last batch wait for another epoch's order."""
        return len(self.labels) // self.batch_size

    def resolution(self, epoch: int) -> int:
        return self.params.low_resolution if epoch < self.params.low_resolution_epochs else 32

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images uint8 (B, 3, R, R), labels int64 (B,)) of the 0-based epoch, B this process's share."""
        generator = Generator().manual_seed(self.params.seed * 100_003 + epoch + 1)
        order = torch.randperm(len(self.labels), generator=generator)
        mirrored = self.mirrored(epoch, generator)
        for rows in order[: len(self) * self.batch_size].split(self.batch_size):
            images = augment.crop(self.padded[rows], 32, generator)
            images = augment.mirror(images, mirrored[rows])
            images = trivial_augment(images, self.params.trivial_augment, generator)
            images = augment.cutout(images, self.params.cutout, self.fill, generator)
            images = augment.resize(self.world.share(images), self.resolution(epoch))
            yield images, self.world.share(self.labels[rows])

    def mirrored(self, epoch: int, generator: Generator) -> Tensor:
        """Which images to mirror, bool (N,). Alternating: random in the first epoch, then each changes sides every
        epoch, so that a pair of epochs shows both (K. Jordan, 2024, section 3.6)."""
        if self.params.flip == "none":
            return torch.zeros(len(self.labels), dtype=torch.bool)
        if self.params.flip == "alternating":
            generator = Generator().manual_seed(self.params.seed * 100_003)
        drawn = torch.rand(len(self.labels), generator=generator) < 0.5
        return drawn ^ (self.params.flip == "alternating" and epoch % 2 == 1)
