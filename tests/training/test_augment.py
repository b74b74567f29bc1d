import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from cifar_resnet.inference import predictor
from cifar_resnet.training import augment

IMAGES = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=Generator().manual_seed(0))
MANY_IMAGES = torch.randint(0, 256, (200, 3, 32, 32), dtype=torch.uint8, generator=Generator().manual_seed(0))


def trivially_augmented(probability: float, seed: int = 0) -> Tensor:
    return augment.trivial_augment(MANY_IMAGES, probability, Generator().manual_seed(seed))


def test_padding_reflects_at_the_border() -> None:
    assert torch.equal(predictor.reflect_pad(IMAGES, 4), F.pad(IMAGES.float(), (4,) * 4, "reflect").byte())


def test_each_image_is_cropped_at_its_own_position() -> None:
    padded = predictor.reflect_pad(IMAGES, 2)
    cropped = augment.crop(padded, 32, Generator().manual_seed(1))
    positions = set()
    for image, source in zip(cropped, padded, strict=True):
        matches = [(y, x) for y in range(5) for x in range(5) if torch.equal(image, source[:, y : y + 32, x : x + 32])]
        assert len(matches) == 1
        positions.update(matches)
    assert len(positions) > 3


def test_only_the_images_of_the_mask_are_flipped() -> None:
    mask = torch.arange(12) % 2 == 0
    flipped = augment.flip_left_right(IMAGES, mask)
    assert torch.equal(flipped[mask], IMAGES[mask].flip(-1))
    assert torch.equal(flipped[~mask], IMAGES[~mask])


def test_cutout_erases_one_full_square_in_the_fill_colour() -> None:
    white = torch.full((12, 3, 32, 32), 255, dtype=torch.uint8)
    cut = augment.cutout(white, 10, torch.tensor([1, 2, 3], dtype=torch.uint8), Generator().manual_seed(0))
    for channel in range(3):
        assert ((cut[:, channel] == channel + 1).sum(dim=(1, 2)) == 100).all()
        assert ((cut[:, channel] == 255).sum(dim=(1, 2)) == 32 * 32 - 100).all()
    assert torch.equal(augment.cutout(white, 0, torch.zeros(3), Generator()), white)


def test_resizing_keeps_dtype_and_mean_brightness() -> None:
    small = augment.resize(IMAGES, 24)
    assert small.shape == (12, 3, 24, 24)
    assert small.dtype == torch.uint8
    assert abs(small.float().mean() - IMAGES.float().mean()) < 2  # rounding and the border's weight


def test_trivial_augment_changes_about_the_requested_share_of_images() -> None:
    for probability, least, most in ((0.0, 0, 0), (0.5, 60, 110), (1.0, 150, 199)):  # some operations have no effect
        changed = (trivially_augmented(probability) != MANY_IMAGES).flatten(1).any(1).sum()
        assert least <= changed <= most
    assert trivially_augmented(1.0).dtype == torch.uint8


def test_trivial_augment_depends_only_on_its_generator_and_leaves_the_global_one_unchanged() -> None:
    before = torch.get_rng_state()
    first = trivially_augmented(0.5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(trivially_augmented(0.5), first)
    assert not torch.equal(trivially_augmented(0.5, seed=1), first)


def test_trivial_augment_does_not_change_its_input() -> None:
    before = MANY_IMAGES.clone()
    trivially_augmented(1.0)
    assert torch.equal(MANY_IMAGES, before)


def test_noise_changes_square_patches_of_about_the_requested_share_of_images() -> None:
    grey = torch.full((400, 3, 22, 22), 128, dtype=torch.uint8)
    noisy = augment.add_noise(grey, 0.1, 0.5, Generator().manual_seed(0))
    assert noisy.dtype == torch.uint8
    changed = (noisy != grey).any(dim=1)  # at 8 bits, weak noise leaves many values as they are
    assert 150 <= changed.flatten(1).any(1).sum() <= 220
    assert torch.equal(grey, torch.full_like(grey, 128))
    assert torch.equal(augment.add_noise(grey, 0.1, 0.0, Generator()), grey)
    std = (noisy.float() - 128)[noisy != grey].std() / 255
    assert 0.04 < std < 0.08  # of a uniform mixture up to 0.1, without the values that stayed: about 0.06


def test_patches_are_squares_within_the_limits_and_differ_between_images() -> None:
    inside = augment.patches(500, 20, Generator().manual_seed(0))
    assert inside.shape == (500, 1, 20, 20)
    rows, columns = inside.any(3).sum(2).flatten(), inside.any(2).sum(2).flatten()
    assert torch.equal(inside.flatten(1).sum(1), rows * columns)
    assert 20 * augment.PATCH_SIDES[0] - 1 <= torch.maximum(rows, columns).max() <= 20 * augment.PATCH_SIDES[1]
    assert rows.min() >= 2  # at the border, half of the smallest patch
    assert len(inside.flatten(1).unique(dim=0)) > 300
