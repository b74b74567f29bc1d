import numpy as np
import pytest
import torch
from conftest import tiny_images
from torch import Generator

from cifar_resnet.evaluation import corruptions

PIXELS = tiny_images(2, seed=0).pixels
RAMP = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8), (4, 3, 32, 32)).copy()


def generator() -> Generator:
    return Generator().manual_seed(0)


@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
def test_corruptions_are_deterministic_and_do_not_change_their_input(name: str) -> None:
    before = PIXELS.copy()
    first, again, other = (corruptions.corrupt(PIXELS, name, 3, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(PIXELS, before)
    assert first.dtype == np.uint8
    assert first.shape == PIXELS.shape
    assert np.array_equal(first, again)
    random = name.endswith("noise") or name in {"motion_blur", "fog", "snow"}
    assert np.array_equal(first, other) != random


@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
def test_the_distance_from_the_image_grows_with_the_severity(name: str) -> None:
    smooth = np.clip(np.cumsum(np.cumsum(PIXELS / 2000.0, axis=2), axis=3) * 2 + PIXELS / 8, 20, 235).astype(np.uint8)
    differences = [corruptions.corrupt(smooth, name, severity).astype(int) - smooth for severity in range(1, 6)]
    distances = [float(np.abs(difference).mean()) for difference in differences]
    assert distances == sorted(distances)
    assert distances[0] > 0


def test_noise_has_the_requested_std() -> None:
    grey = torch.full((50, 3, 32, 32), 0.5)
    # 153,600 values: the standard error of a std is 0.2 % of it
    assert (corruptions.gaussian_noise(grey, 0.1, generator()) - grey).std().item() == pytest.approx(0.1, rel=0.02)
    assert (corruptions.shot_noise(grey, 50, generator()) - grey).std().item() == pytest.approx(0.1, rel=0.02)
    changed = corruptions.impulse_noise(grey, 0.1, generator())
    assert (changed != grey).float().mean().item() == pytest.approx(0.1, rel=0.05)
    assert (changed == 0).sum().item() == pytest.approx((changed == 1).sum().item(), rel=0.05)


def test_blurs_keep_a_uniform_image_and_spread_a_point() -> None:
    uniform, point = torch.full((2, 3, 32, 32), 0.3), torch.zeros(2, 3, 32, 32)
    point[:, :, 16, 16] = 1
    for blur, strength in (
        (corruptions.defocus_blur, (1.5, 0.1)),
        (corruptions.motion_blur, 2.0),
        (corruptions.zoom_blur, 1.2),
    ):
        torch.testing.assert_close(blur(uniform, strength, generator()), uniform)
        spread = blur(point, strength, generator())
        assert 0 < spread[0, 0, 16, 16] < 1
        assert (spread[0, 0] > 0.001).sum() > 3
    disk = corruptions.defocus_blur(point, (1.0, 0.01), generator())
    assert disk[0, 0, 15:18, 15:18].flatten().tolist() == pytest.approx([0, 0.2, 0, 0.2, 0.2, 0.2, 0, 0.2, 0])


def test_integer_shifts_and_a_zoom_of_two_are_exact() -> None:
    image = torch.rand((1, 1, 32, 32), generator=generator())
    moved = corruptions.zoom_and_shift(image, 1.0, torch.tensor([[3.0, 1.0]]))
    torch.testing.assert_close(moved[0, 0, 1:, 3:], image[0, 0, :-1, :-3], atol=1e-5, rtol=0)
    blocks = image[:, :, 8:24, 8:24].repeat_interleave(2, 2).repeat_interleave(2, 3)
    nearest = corruptions.zoom_and_shift(blocks, 1.0, torch.zeros(1, 2))
    torch.testing.assert_close(nearest, blocks, atol=1e-5, rtol=0)
    ramp = torch.arange(32.0).expand(1, 1, 32, 32) / 32
    magnified = corruptions.zoom_and_shift(ramp, 2.0, torch.zeros(1, 2))
    torch.testing.assert_close(magnified[0, 0, 0].diff(), torch.full((31,), 0.5 / 32), atol=1e-5, rtol=0)


def test_fog_lightens_dark_pixels_up_to_the_brightest_value() -> None:
    black = torch.zeros(3, 3, 32, 32)
    black[:, :, 0, 0] = 0.8
    foggy = corruptions.fog(black, (1.0, 2.0), generator())
    # black below the thickest cloud becomes 1 x 0.8 / 1.8; the maximum is 0.8
    assert foggy[:, :, 1:].amax(dim=(1, 2, 3)).tolist() == pytest.approx([0.8 / 1.8] * 3, rel=0.02)
    assert foggy.max() <= 0.8
    assert foggy.min() >= 0


def test_brightness_and_contrast_match_values_calculated_by_hand() -> None:
    image = torch.tensor([0.4, 0.2, 0.1]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    bright = corruptions.brightness(image, 0.2, generator())[0, :, 0, 0]
    assert bright.tolist() == pytest.approx([0.6, 0.3, 0.15])
    assert corruptions.brightness(image, 0.9, generator())[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.5, 0.25])
    halves = torch.cat([torch.full((1, 3, 32, 16), 0.2), torch.full((1, 3, 32, 16), 0.6)], dim=3)
    assert corruptions.contrast(halves, 0.5, generator()).unique().tolist() == pytest.approx([0.3, 0.5])


def test_pixelate_averages_areas() -> None:
    image = torch.rand((1, 3, 32, 32), generator=generator())
    coarse = corruptions.pixelate(image, 16, generator())
    assert coarse[0, 0, 0, 0].item() == pytest.approx(image[0, 0, :2, :2].mean().item())
    assert coarse[0, 0, 0, 0] == coarse[0, 0, 1, 1] != coarse[0, 0, 2, 2]
    uneven = corruptions.pixelate(image, 24, generator())  # a pixel of 24 is 4/3 pixels of 32 wide
    weights = torch.tensor([[1.0], [1 / 3]]) * torch.tensor([1.0, 1 / 3])
    assert uneven[0, 0, 0, 0].item() == pytest.approx((image[0, 0, :2, :2] * weights).sum().item() / (16 / 9))


def test_jpeg_changes_images_and_is_deterministic() -> None:
    decoded = corruptions.corrupt(RAMP, "jpeg", 1)
    assert 0 < np.abs(decoded.astype(int) - RAMP).mean() < 8
    assert np.array_equal(decoded[0], decoded[3])


def test_the_balanced_subset_is_stratified_and_deterministic() -> None:
    labels = np.array([0] * 50 + [1] * 50 + [2] * 3)
    rows = corruptions.balanced_subset(labels, 10)
    assert np.bincount(labels[rows]).tolist() == [10, 10, 3]
    assert np.array_equal(rows, corruptions.balanced_subset(labels, 10))
    assert len(set(rows.tolist())) == 23
    assert not np.array_equal(rows, corruptions.balanced_subset(labels, 10, seed=1))
