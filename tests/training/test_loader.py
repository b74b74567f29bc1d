import torch
from conftest import tiny_images, tiny_params

from cifar_resnet.training.distributed import World
from cifar_resnet.training.loader import BatchLoader

IMAGES = tiny_images(5, seed=0)


def batches(**train: object) -> BatchLoader:
    return BatchLoader(IMAGES, tiny_params(train=train).train, World())


def test_order_and_augmentation_depend_on_seed_and_epoch_alone() -> None:
    first, again = (list(batches(trivial_augment=0.5, cutout=4).epoch(1)) for _ in range(2))
    assert all(
        torch.equal(a, b) for one, other in zip(first, again, strict=True) for a, b in zip(one, other, strict=True)
    )
    for other in (
        batches(trivial_augment=0.5, cutout=4).epoch(2),
        batches(trivial_augment=0.5, cutout=4, seed=1).epoch(1),
        batches(cutout=4).epoch(1),
    ):
        assert not torch.equal(first[0][0], next(iter(other))[0])


def test_an_epoch_shows_each_image_at_most_once_in_full_batches() -> None:
    plain = batches(translation=0, flip="none", low_resolution_epochs=0, batch_size=15)
    shown = torch.cat([images for images, _ in plain.epoch(0)])
    assert len(plain) == 3
    assert len(shown) == 45
    assert len(shown.flatten(1).unique(dim=0)) == 45


def test_images_keep_their_labels() -> None:
    plain = batches(translation=0, flip="none", low_resolution_epochs=0)
    known = {pixels.tobytes(): label for pixels, label in zip(IMAGES.pixels, IMAGES.labels, strict=True)}
    for images, labels in plain.epoch(0):
        assert [known[image.contiguous().numpy().tobytes()] for image in images] == labels.tolist()


def test_alternating_flip_shows_both_sides_in_two_epochs() -> None:
    alternating = batches(flip="alternating")
    even, odd = (alternating.flip_mask(epoch, torch.Generator()) for epoch in (0, 1))
    assert torch.equal(even, ~odd)
    assert 0 < even.sum() < len(even)


def test_the_first_epochs_are_smaller() -> None:
    few = batches(low_resolution_epochs=1)
    assert [next(iter(few.epoch(epoch)))[0].shape[-1] for epoch in (0, 1)] == [24, 32]


def test_a_batch_larger_than_the_data_is_all_of_it() -> None:
    assert len(batches(batch_size=1000)) == 1
