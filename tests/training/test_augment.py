import torch
import torch.nn.functional as F
from torch import Generator

from cifar_resnet.inference import predictor
from cifar_resnet.training import augment

IMAGES = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=Generator().manual_seed(0))


def test_padding_mirrors_at_the_border() -> None:
    assert torch.equal(predictor.reflect_pad(IMAGES, 4), F.pad(IMAGES.float(), (4,) * 4, "reflect").byte())


def test_every_image_is_cropped_at_its_own_place_inside_the_padding() -> None:
    padded = predictor.reflect_pad(IMAGES, 2)
    cropped = augment.crop(padded, 32, Generator().manual_seed(1))
    places = set()
    for image, source in zip(cropped, padded, strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if torch.equal(image, source[:, y : y + 32, x : x + 32])]
        assert len(found) == 1
        places.update(found)
    assert len(places) > 3


def test_only_the_chosen_images_are_mirrored() -> None:
    chosen = torch.arange(12) % 2 == 0
    mirrored = augment.flip_left_right(IMAGES, chosen)
    assert torch.equal(mirrored[chosen], IMAGES[chosen].flip(-1))
    assert torch.equal(mirrored[~chosen], IMAGES[~chosen])


def test_cutout_erases_one_whole_square_of_the_given_colour() -> None:
    white = torch.full((12, 3, 32, 32), 255, dtype=torch.uint8)
    cut = augment.cutout(white, 10, torch.tensor([1, 2, 3], dtype=torch.uint8), Generator().manual_seed(0))
    for channel in range(3):
        assert ((cut[:, channel] == channel + 1).sum(dim=(1, 2)) == 100).all()
        assert ((cut[:, channel] == 255).sum(dim=(1, 2)) == 32 * 32 - 100).all()
    assert torch.equal(augment.cutout(white, 0, torch.zeros(3), Generator()), white)


def test_resizing_keeps_type_and_mean_brightness() -> None:
    small = augment.resize(IMAGES, 24)
    assert small.shape == (12, 3, 24, 24)
    assert small.dtype == torch.uint8
    assert abs(small.float().mean() - IMAGES.float().mean()) < 2  # rounding and the border's weight
