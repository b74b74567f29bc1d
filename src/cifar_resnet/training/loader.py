"""Batches of training images. Order and augmentation depend on (seed, epoch) only, so no generator state is saved."""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from cifar_resnet.data.dataset import Images
from cifar_resnet.errors import UserError
from cifar_resnet.inference.predictor import reflect_pad
from cifar_resnet.params.schema import TrainParams
from cifar_resnet.training import augment
from cifar_resnet.training.distributed import World


class BatchLoader:
    """Batches of all epochs, from one padded copy of the images in memory.

    Args:
        images: the training images.
        params: batch size, augmentation, resolution and seed.
        world: the processes that train; each yields its own rows of each batch.

    Raises:
        UserError: if there are fewer images than processes.
    """

    def __init__(self, images: Images, params: TrainParams, world: World) -> None:
        if len(images) < world.size:
            raise UserError(f"train.processes is {world.size}: at most {len(images)}, the number of training images")
        self.params = params
        self.world = world
        self.batch_size = min(params.batch_size, len(images)) // world.size * world.size
        pixels = torch.from_numpy(images.pixels)
        self.padded = reflect_pad(pixels, params.translation).contiguous(memory_format=torch.channels_last)
        self.labels = torch.from_numpy(images.labels)
        self.mean_color = (pixels.sum(dim=(0, 2, 3)) / pixels[:, 0].numel()).round().to(torch.uint8)

    def __len__(self) -> int:
        """Steps per epoch. Images that do not fill a last batch are skipped; they differ from epoch to epoch."""
        return len(self.labels) // self.batch_size

    def resolution(self, epoch: int) -> int:
        """Pixels per side in the 0-based epoch; the last epoch always has 32."""
        epochs = self.params.epochs
        low_resolution_epochs = min(round(self.params.low_resolution_share * epochs), epochs - 1)
        return self.params.low_resolution if epoch < low_resolution_epochs else 32

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images uint8 (B, 3, R, R), labels int64 (B,)) of the 0-based epoch; B is this process's share."""
        params = self.params
        generator = Generator().manual_seed(params.seed * 100_003 + epoch + 1)
        order = torch.randperm(len(self.labels), generator=generator)
        flipped = self.flip_mask(epoch, generator)
        for rows in order[: len(self) * self.batch_size].split(self.batch_size):
            images = augment.crop(self.padded[rows], 32, generator)
            images = augment.flip_left_right(images, flipped[rows])
            images = augment.trivial_augment(images, params.trivial_augment_probability, generator)
            images = augment.cutout(images, params.cutout, self.mean_color, generator)
            images = augment.resize(images, self.resolution(epoch))
            images = augment.add_noise(images, params.noise, params.noise_probability, generator)
            yield self.world.shard(images), self.world.shard(self.labels[rows])

    def flip_mask(self, epoch: int, generator: Generator) -> Tensor:
        """Which images to flip, bool (N,).

        Alternating: random in the first epoch, then the opposite of the epoch before, so that two epochs show both
        versions of each image (K. Jordan, 2024, section 3.6).
        """
        if self.params.flip == "none":
            return torch.zeros(len(self.labels), dtype=torch.bool)
        if self.params.flip == "alternating":
            generator = Generator().manual_seed(self.params.seed * 100_003)
        mask = torch.rand(len(self.labels), generator=generator) < 0.5
        return mask ^ (self.params.flip == "alternating" and epoch % 2 == 1)
