import pytest

from cifar_resnet.data.class_folders import Placement, place_pictures
from cifar_resnet.errors import UserError


def test_the_first_folder_is_the_class_at_any_depth() -> None:
    files = ["cat/a.jpg", "cat/2024/may/b.jpg", "dog/train/c.jpg", "d.jpg"]
    assert place_pictures(files, "photos") == [
        Placement("train", "cat"),
        Placement("train", "cat"),
        Placement("train", "dog"),
        None,
    ]


def test_the_folders_of_a_split_are_not_classes() -> None:
    files = ["Train/cat/a.jpg", "Train/dog/deep/b.jpg", "test/cat/c.jpg", "val/dog/d.jpg", "test/e.jpg"]
    assert place_pictures(files, "photos") == [
        Placement("train", "cat"),
        Placement("train", "dog"),
        Placement("test", "cat"),
        Placement("validation", "dog"),
        None,
    ]
    assert place_pictures(["train/cat/a.jpg", "train/dog/b.jpg"], "photos")[0] == Placement("train", "cat")


def test_a_class_may_be_named_as_a_split() -> None:
    assert place_pictures(["train/a.jpg", "bus/b.jpg"], "photos")[0] == Placement("train", "train")


def test_the_two_encodings_of_an_accent_are_one_class() -> None:
    placements = place_pictures(["K\u00e4se/a.jpg", "Ka\u0308se/b.jpg", "Brot/c.jpg"], "photos")
    assert [placement and placement.class_name for placement in placements] == ["K\u00e4se", "K\u00e4se", "Brot"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "photos: contains no picture; needed are pictures in photos/<class>/, for two classes"),
        (["a.jpg", "b.jpg"], "photos: no picture is in the folder of a class; needed are pictures in photos/<class>/"),
        (
            ["train/a.jpg", "test/b.jpg"],
            "photos: no picture is in the folder of a class; needed are pictures in photos/train/<class>/",
        ),
        (["cat/a.jpg", "cat/b.jpg"], "photos: a single class found (cat), at least two needed"),
        (
            ["all/cat/a.jpg", "all/dog/b.jpg"],
            "photos: a single class found (all), at least two needed; if the folders in all are the classes, add /all "
            "to download.folder",
        ),
        (["train/cat/a.jpg", "test/cat/b.jpg"], "photos: a single class found (cat), at least two needed"),
        (
            ["Cat/a.jpg", "cat/b.jpg", "dog/c.jpg"],
            "photos: the classes Cat and cat differ only in case; rename or merge one of them",
        ),
        (
            ["train/Dog/a.jpg", "train/cat/b.jpg", "test/dog/c.jpg"],
            "photos: the classes Dog and dog differ only in case; rename or merge one of them",
        ),
        (
            ["train/cat/a.jpg", "test/cat/b.jpg", "extra/cat/c.jpg"],
            "photos: extra found beside the folders train and test, which only validation may join; move it elsewhere",
        ),
        (
            ["val/cat/a.jpg", "test/dog/b.jpg"],
            "photos: the folders test, val found; a split has one folder train, and at most one validation and one "
            "test",
        ),
        (
            ["train/cat/a.jpg", "val/cat/b.jpg", "valid/dog/c.jpg"],
            "photos: the folders train, val, valid found; a split has one folder train, and at most one validation and "
            "one test",
        ),
    ],
)
def test_folders_that_are_no_classes_are_an_error_of_one_line(files: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        place_pictures(files, "photos")
    assert str(caught.value) == message
