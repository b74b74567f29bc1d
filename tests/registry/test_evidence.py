import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag

from cifar_resnet.registry.evidence import decode_mask, encode_mask, pack_evidence, read_evidence

VALUES = {"accuracy": "0.9", "git_commit": "abc", "git_dirty": "false", "model": "123", "test_correct": "2:xyz"}


def version_with(tags: dict[str, str]) -> ModelVersion:
    return ModelVersion("model", "1", 0, tags=[ModelVersionTag(key, value) for key, value in tags.items()])


def test_a_version_gets_a_few_readable_tags_and_one_with_the_rest() -> None:
    tags = pack_evidence(VALUES)
    assert {key: tags[key] for key in tags if key != "evidence"} == {"accuracy": "0.9", "git_commit": "abc"}
    assert json.loads(tags["evidence"]).keys() == {"git_dirty", "model", "test_correct"}


def test_the_values_of_packed_and_of_separate_tags_are_the_same() -> None:
    for tags in (pack_evidence(VALUES), VALUES):
        evidence = read_evidence(version_with(tags))
        assert {key: evidence[key] for key in VALUES} == VALUES


@given(st.lists(st.booleans(), max_size=50))
def test_decoding_inverts_encoding(correct: list[bool]) -> None:
    assert decode_mask(encode_mask(np.array(correct, dtype=bool))).tolist() == correct


def test_the_evidence_of_the_test_set_fits_in_a_tag_of_postgresql() -> None:
    correct = np.random.default_rng(0).random(10_000) < 0.5  # compresses least
    hashes = dict.fromkeys(("model", "test_data", "train_data", "params", "git_error", "dvc_baseline"), "0" * 40)
    assert len(pack_evidence(hashes | {"test_correct": encode_mask(correct)})["evidence"]) < 2500  # at most 5,000
