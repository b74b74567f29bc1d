import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from conftest import tiny_images

from cifar_resnet import serving
from cifar_resnet.inputs import Chunk
from cifar_resnet.predictions import Tally, predict

PIXELS = tiny_images(1, seed=4).pixels


def test_the_served_model_answers_as_predict_does_at_the_models_temperature(project: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.symlink_to(project / "data/model/model.safetensors")
    card = json.loads((project / "data/model/model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(card | {"temperature": 3.0}))
    served, context = serving.ServedModel(), cast("Any", SimpleNamespace(artifacts={"weights": str(weights)}))
    served.load_context(context)
    answers = served.predict(context, PIXELS.transpose(0, 2, 3, 1))
    chunks = [Chunk(["image"] * 10, PIXELS, [])]
    for answer, expected in zip(answers, predict(tmp_path, chunks, Tally(), strict=True, batch_size=10), strict=True):
        assert (answer["label"], answer["class_name"]) == (expected.labels[0], expected.class_names[0])
        assert answer["confidence"] == pytest.approx(expected.confidences[0])
