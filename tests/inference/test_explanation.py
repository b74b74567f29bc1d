from pathlib import Path

import numpy as np
import pytest
import torch

from cifar_resnet.inference.explanation import explain
from cifar_resnet.inference.model import Model
from cifar_resnet.inference.uncertainty import UNFAMILIAR, Reliability


@pytest.fixture(scope="module")
def model(project: Path) -> Model:
    return Model(project / "data/model", torch.device("cpu"))


def test_the_probabilities_are_those_of_predict(project: Path, model: Model) -> None:
    pixels = np.load(project / "data/prepared/test_images.npy", allow_pickle=False)[5]
    explanation = explain(model, Reliability([]), pixels)
    (expected,) = model.predict(pixels[None]).probabilities
    assert list(explanation.probabilities) == model.classes
    assert list(explanation.probabilities.values()) == pytest.approx(expected.tolist())
    assert explanation.trust == ""


def test_the_heat_map_is_red_where_covering_changes_the_prediction(project: Path, model: Model) -> None:
    pixels = np.load(project / "data/prepared/test_images.npy", allow_pickle=False)[5]
    heat = explain(model, Reliability([]), pixels).heat.astype(int)
    assert (heat[..., 0] - heat[..., 1]).max() > 50
    assert (heat[..., 0] >= heat[..., 1]).all()


def test_the_familiarity_is_compared_with_the_threshold(project: Path, model: Model) -> None:
    pixels = np.load(project / "data/prepared/test_images.npy", allow_pickle=False)[5]
    assert explain(model, Reliability([], familiarity_threshold=1e9), pixels).trust == UNFAMILIAR
    assert explain(model, Reliability([], familiarity_threshold=-1e9), pixels).trust == ""
