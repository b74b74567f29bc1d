from pathlib import Path

import pytest
from conftest import rows

from cifar_resnet.files import read_json, write_json
from cifar_resnet.inference.uncertainty import UNFAMILIAR, Reliability, read_reliability

BINS = [
    {"confidence": 0.2, "accuracy": 0.0, "accuracy_low": 0.0, "accuracy_high": 0.8, "images": 1.0},
    {"confidence": 0.5, "accuracy": 0.5312, "accuracy_low": 0.44, "accuracy_high": 0.62, "images": 115.0},
    {"confidence": 0.99, "accuracy": 0.9874, "accuracy_low": 0.98, "accuracy_high": 0.99, "images": 8445.0},
]


def test_the_sentence_gives_the_accuracy_of_the_test_images_with_similar_confidence() -> None:
    reliability = Reliability(BINS, familiarity_threshold=2.0)
    assert reliability.sentence(confidence=0.6, familiarity=3.0) == (
        "Of 115 test images with a confidence of about 50%, 53% were classified correctly (95 % interval 44% to 62%)."
    )
    assert reliability.sentence(confidence=1.0, familiarity=3.0).startswith("Of 8,445 test images")


def test_bins_with_few_images_are_not_used() -> None:
    assert Reliability(BINS).sentence(confidence=0.2, familiarity=0.0).startswith("Of 115 test images")


def test_a_small_test_set_says_that_it_is_too_small() -> None:
    bins = [row | {"images": 12.0} for row in BINS[:2]]
    assert Reliability(bins).sentence(confidence=1.0, familiarity=0.0) == (
        "24 test images are too few to say how often such an answer is right."
    )


def test_an_unfamiliar_picture_gets_a_warning_and_no_accuracy() -> None:
    assert Reliability(BINS, familiarity_threshold=2.0).sentence(confidence=1.0, familiarity=1.99) == UNFAMILIAR


def test_without_a_threshold_no_picture_is_unfamiliar() -> None:
    assert Reliability(BINS).sentence(confidence=1.0, familiarity=-100.0).startswith("Of 8,445 test images")


def test_without_an_evaluation_there_is_no_sentence(tmp_path: Path) -> None:
    for evaluation in (None, tmp_path):
        assert read_reliability(evaluation).sentence(confidence=0.5, familiarity=0.0) == ""


def test_the_evaluation_of_the_pipeline_can_be_read(project: Path) -> None:
    evaluation = project / "data/evaluation"
    reliability = read_reliability(evaluation)
    assert reliability.familiarity_threshold == read_json(evaluation / "metrics.json")["familiarity_threshold"]
    assert [row["images"] for row in reliability.bins] == [
        float(row["images"]) for row in rows(evaluation / "reliability.csv")
    ]


@pytest.mark.parametrize("metrics", [{}, {"familiarity_threshold": None}])
def test_an_evaluation_without_held_out_images_has_no_threshold(metrics: dict[str, None], tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", metrics)
    (tmp_path / "reliability.csv").write_text("confidence,accuracy,accuracy_low,accuracy_high,images\n")
    assert read_reliability(tmp_path).familiarity_threshold is None
