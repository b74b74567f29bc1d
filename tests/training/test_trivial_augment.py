import torch
from torch import Generator, Tensor

from cifar_resnet.training.augment import trivial_augment

IMAGES = torch.randint(0, 256, (200, 3, 32, 32), dtype=torch.uint8, generator=Generator().manual_seed(0))


def distorted(share: float, seed: int = 0) -> Tensor:
    return trivial_augment(IMAGES, share, Generator().manual_seed(seed))


def test_about_the_share_of_images_is_distorted() -> None:
    for share, least, most in ((0.0, 0, 0), (0.5, 60, 110), (1.0, 150, 199)):  # of some strengths nothing is left
        changed = (distorted(share) != IMAGES).flatten(1).any(1).sum()
        assert least <= changed <= most
    assert distorted(1.0).dtype == torch.uint8


def test_the_generator_decides_and_no_other_is_touched() -> None:
    before = torch.get_rng_state()
    first = distorted(0.5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(distorted(0.5), first)
    assert not torch.equal(distorted(0.5, seed=1), first)


def test_the_images_given_stay_as_they_are() -> None:
    before = IMAGES.clone()
    distorted(1.0)
    assert torch.equal(IMAGES, before)
