import numpy as np
import pytest
from conftest import tiny_images

from cifar_resnet.data.dataset import Images
from cifar_resnet.data.picture_split import check_copies, class_sizes_text, complete_splits
from cifar_resnet.data.raw_dataset import Picture, RawDataset
from cifar_resnet.errors import UserError

CLASSES = tuple("abcdefghij")


def dataset(is_published: bool = False, **splits: Images) -> RawDataset:
    pictures = {
        name: [Picture(f"{name}/{row}.png", "") for row in range(len(images))] for name, images in splits.items()
    }
    return RawDataset("photos", CLASSES, splits, pictures, is_published)


def complete(source: RawDataset, *, validation: float = 0.1, test: float = 0.2, seed: int = 0) -> dict[str, Images]:
    return complete_splits(source, validation_share=validation, test_share=test, seed=seed)


def sizes(images: Images) -> list[int]:
    return np.bincount(images.labels, minlength=len(CLASSES)).tolist()


def records(images: Images) -> set[bytes]:
    return {pixels.tobytes() for pixels in images.pixels}


def joined(*parts: Images) -> Images:
    return Images(np.concatenate([part.pixels for part in parts]), np.concatenate([part.labels for part in parts]))


def test_the_split_is_stratified_seeded_disjoint_and_complete() -> None:
    images = tiny_images(20, seed=1)
    splits = complete(dataset(train=images))
    assert list(splits) == ["train", "validation", "test"]
    assert [sizes(part) for part in splits.values()] == [[14] * 10, [2] * 10, [4] * 10]
    assert set.union(*map(records, splits.values())) == records(images)
    assert sum(len(records(part)) for part in splits.values()) == 200
    again, other = complete(dataset(train=images)), complete(dataset(train=images), seed=1)
    for name, part in splits.items():
        assert np.array_equal(again[name].pixels, part.pixels)
        assert np.array_equal(again[name].labels, part.labels)
        assert records(other[name]) != records(part)


def test_every_image_keeps_its_label() -> None:
    images = tiny_images(20, seed=1)
    labels = {pixels.tobytes(): label for pixels, label in zip(images.pixels, images.labels, strict=True)}
    for part in complete(dataset(train=images)).values():
        assert all(labels[pixels.tobytes()] == label for pixels, label in zip(part.pixels, part.labels, strict=True))


def test_the_images_are_in_random_order_even_if_the_source_is_sorted() -> None:
    images = tiny_images(20, seed=1)
    ordered = images.take(np.argsort(images.labels, kind="stable"))
    for part in complete(dataset(train=ordered)).values():
        assert (np.diff(part.labels) < 0).any()
        assert len(set(part.labels[:10].tolist())) > 3


def test_unequal_classes_keep_their_shares() -> None:
    images = tiny_images(40, seed=1)
    rows = np.concatenate([np.flatnonzero(images.labels == label)[: 10 + 3 * label] for label in range(10)])
    splits = complete(dataset(train=images.take(rows)))
    totals = np.array([10 + 3 * label for label in range(10)])
    assert sizes(splits["test"]) == np.floor(totals * 0.2 + 0.5).tolist()
    assert sizes(splits["validation"]) == np.floor(totals * 0.1 + 0.5).tolist()
    assert class_sizes_text(splits, CLASSES) == "10 classes of unequal size: 10 images of a to 37 of j"


def test_the_split_of_the_source_is_kept_and_only_what_it_lacks_is_drawn() -> None:
    train, test, validation = (tiny_images(10, seed=seed) for seed in (1, 2, 3))
    splits = complete(dataset(train=train, test=test))
    assert records(splits["test"]) == records(test)
    assert records(splits["train"]) | records(splits["validation"]) == records(train)
    assert sizes(splits["validation"]) == [1] * 10
    given = complete(dataset(train=train, validation=validation, test=test))
    assert [records(part) for part in given.values()] == [records(part) for part in (train, validation, test)]


def test_without_a_validation_share_all_images_that_are_not_for_the_test_are_for_training() -> None:
    splits = complete(dataset(train=tiny_images(10, seed=1)), validation=0)
    assert [len(part) for part in splits.values()] == [80, 0, 20]


def test_images_with_the_same_pixels_stay_together() -> None:
    images = tiny_images(10, seed=1)
    source = dataset(train=joined(images, images, images.take(np.arange(30))))
    for seed in range(5):
        splits = complete(source, seed=seed)
        assert sum(len(part) for part in splits.values()) == 230
        assert sum(len(records(part)) for part in splits.values()) == 100
        assert [len(records(part)) for part in splits.values()] == [70, 10, 20]
    [line] = check_copies(source)
    assert line.startswith("130 copies in the same class: train/0.png = train/100.png, ")
    assert line.endswith(" and 110 more")


@pytest.mark.parametrize(
    ("total", "validation", "test", "needed"),
    [(4, 0.1, 0.2, 5), (1, 0.0, 0.5, 2), (2, 0.45, 0.5, 12), (13, 0.45, 0.5, 14)],
)
def test_too_few_pictures_of_a_class_are_an_error_that_says_how_many_are_needed(
    total: int, validation: float, test: float, needed: int
) -> None:
    images = tiny_images(20, seed=1)
    few = np.flatnonzero(images.labels == 3)[total:]
    source = dataset(train=images.take(np.setdiff1d(np.arange(200), few)))
    with pytest.raises(
        UserError, match=f"^class d: {total} different pictures? found, at least {needed} needed with pre"
    ):
        complete(source, validation=validation, test=test)
    enough = np.setdiff1d(np.arange(200), np.flatnonzero(images.labels == 3)[needed:])
    assert min(sizes(complete(dataset(train=images.take(enough)), validation=validation, test=test)["test"])) >= 1


def test_copies_do_not_count_as_different_pictures() -> None:
    images = tiny_images(5, seed=1)
    is_d = images.labels == 3
    pixels = np.where(is_d[:, None, None, None], images.pixels[is_d][:1], images.pixels)
    with pytest.raises(UserError, match=r"^class d: 1 different picture found, at least 5 needed"):
        complete(dataset(train=Images(pixels, images.labels)))


def test_a_split_of_the_source_without_a_class_is_an_error() -> None:
    train, test = tiny_images(10, seed=1), tiny_images(10, seed=2)
    without = test.take(np.flatnonzero(~np.isin(test.labels, (2, 4))))
    with pytest.raises(UserError, match=r"^test: no picture of c, e; every class needs pictures in every split$"):
        complete(dataset(train=train, test=without))
    with pytest.raises(UserError, match=r"^train: no picture of c, e; "):
        complete(dataset(train=without, test=train))


def test_a_picture_in_two_splits_is_an_error_that_names_both_files() -> None:
    train, test = tiny_images(10, seed=1), tiny_images(10, seed=2)
    assert check_copies(dataset(train=train, test=test)) == []
    both = joined(test, train.take(np.array([7, 3])))
    with pytest.raises(UserError) as caught:
        check_copies(dataset(train=train, test=both))
    assert str(caught.value) == (
        "the same picture, after scaling to 32 x 32 pixels, is in two splits; delete one of each pair: "
        "train/7.png = test/100.png, train/3.png = test/101.png"
    )


def test_a_picture_in_two_classes_has_a_line_of_its_own() -> None:
    train = tiny_images(10, seed=1)
    copied = train.take(np.array([7, 3]))
    other = Images(copied.pixels[:1], (copied.labels[:1] + 1) % 10)
    assert check_copies(dataset(train=joined(joined(train, other), copied.take(np.array([1]))))) == [
        "1 copy in another class, delete the wrong ones: train/7.png = train/100.png",
        "1 copy in the same class: train/3.png = train/101.png",
    ]


def test_copies_in_a_published_benchmark_are_reported() -> None:
    train, test = tiny_images(10, seed=1), tiny_images(10, seed=2)
    both = joined(test, train.take(np.array([7, 3])))
    assert check_copies(dataset(is_published=True, train=train, test=both)) == [
        "2 copies of images in another split, as published"
    ]


@pytest.mark.parametrize("validation", [0, 0.1])
def test_a_class_that_consists_of_copies_of_another_class_is_an_error(validation: float) -> None:
    images = tiny_images(10, seed=1)
    images = images.take(np.argsort(images.labels, kind="stable"))
    pixels = images.pixels.copy()
    pixels[images.labels == 1] = pixels[images.labels == 0]
    source = dataset(train=Images(pixels, images.labels), test=tiny_images(2, seed=2))
    with pytest.raises(
        UserError, match="class b: all its training pictures are copies of pictures of another class; delete"
    ):
        complete(source, validation=validation)
