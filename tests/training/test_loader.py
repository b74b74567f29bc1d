import pytest
import torch
from conftest import tiny_images, tiny_params

from cifar_resnet.errors import UserError
from cifar_resnet.training.distributed import World
from cifar_resnet.training.loader import BatchLoader

IMAGES = tiny_images(5, seed=0)


def make_loader(**train: object) -> BatchLoader:
    return BatchLoader(IMAGES, tiny_params(train=train).train, World())


def test_order_and_augmentation_depend_only_on_seed_epoch_and_params() -> None:
    first, again = (
        list(make_loader(trivial_augment_probability=0.5, noise_probability=0.5, cutout=4).epoch(1)) for _ in range(2)
    )
    for batch, repeated in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, repeated, strict=True))
    for other in (
        make_loader(trivial_augment_probability=0.5, noise_probability=0.5, cutout=4).epoch(2),
        make_loader(trivial_augment_probability=0.5, noise_probability=0.5, cutout=4, seed=1).epoch(1),
        make_loader(noise_probability=0.5, cutout=4).epoch(1),
        make_loader(trivial_augment_probability=0.5, cutout=4).epoch(1),
    ):
        assert not torch.equal(first[0][0], next(iter(other))[0])


def test_an_epoch_has_full_batches_and_each_image_at_most_once() -> None:
    loader = make_loader(translation=0, flip="none", low_resolution_share=0, batch_size=15)
    images_of_epoch = torch.cat([images for images, _ in loader.epoch(0)])
    assert len(loader) == 3
    assert len(images_of_epoch) == 45
    assert len(images_of_epoch.flatten(1).unique(dim=0)) == 45


def test_images_keep_their_labels() -> None:
    loader = make_loader(translation=0, flip="none", low_resolution_share=0)
    true_labels = {pixels.tobytes(): label for pixels, label in zip(IMAGES.pixels, IMAGES.labels, strict=True)}
    for images, labels in loader.epoch(0):
        assert [true_labels[image.contiguous().numpy().tobytes()] for image in images] == labels.tolist()


def test_alternating_flip_shows_both_versions_of_an_image_in_two_epochs() -> None:
    alternating = make_loader(flip="alternating")
    even, odd = (alternating.flip_mask(epoch, torch.Generator()) for epoch in (0, 1))
    assert torch.equal(even, ~odd)
    assert 0 < even.sum() < len(even)


def test_the_first_epochs_have_a_lower_resolution() -> None:
    loader = make_loader(low_resolution_share=0.4)
    assert [next(iter(loader.epoch(epoch)))[0].shape[-1] for epoch in (0, 1)] == [24, 32]


@pytest.mark.parametrize(("epochs", "low"), [(1, 0), (2, 1), (3, 2), (12, 7), (15, 9), (28, 17), (50, 30), (120, 72)])
def test_the_last_epoch_has_the_full_resolution(epochs: int, low: int) -> None:
    loader = make_loader(low_resolution_share=0.6, epochs=epochs)
    assert [loader.resolution(epoch) for epoch in range(epochs)] == [24] * low + [32] * (epochs - low)


def test_fewer_images_than_processes_are_an_error() -> None:
    with pytest.raises(UserError, match=r"train.processes is 1000: at most \d+, the number of training images"):
        BatchLoader(IMAGES, tiny_params().train, World(size=1000))


def test_a_batch_size_above_the_number_of_images_gives_one_batch() -> None:
    assert len(make_loader(batch_size=1000)) == 1
