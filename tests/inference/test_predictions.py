import csv
import json
import time
from io import StringIO
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_images
from hypothesis import given
from hypothesis import strategies as st

from cifar_resnet.data import cifar10
from cifar_resnet.device import select_device, select_dtype
from cifar_resnet.errors import UserError
from cifar_resnet.inference import classifier, image_reader, predictions, predictor
from cifar_resnet.inference.backend import load_classifier
from cifar_resnet.inference.image_reader import Chunk
from cifar_resnet.inference.logits import softmax
from cifar_resnet.inference.predictions import Counts, Prediction
from cifar_resnet.models import resnet, saved_model
from cifar_resnet.params.file import load_params

PIXELS = tiny_images(1, seed=5).pixels
CAT = Prediction(0, "a.png", [3, 5], ["cat", "dog"], [0.75, 0.125])
DOG = Prediction(1, "b.png", [5, 3], ["dog", "cat"], [0.5, 0.25])


def write(output_format: str, *rows: Prediction) -> str:
    stream = StringIO()
    predictions.WRITERS[output_format](stream, iter(rows))
    return stream.getvalue()


def test_predictions_are_the_likeliest_classes_with_views_of_unsure_images(project: Path, model_path: Path) -> None:
    chunks = [Chunk(["a"], PIXELS[:1], ["bad.png: broken"], 2), Chunk(list("bcd"), PIXELS[1:4], [], 3)]
    counts = Counts()
    folder, target = project / "data/model", select_device()
    loaded = load_classifier(model_path)
    results = list(predictions.predict_images(loaded, chunks, counts, strict=False, batch_size=4, top=3))
    model, config = saved_model.load_model(folder, target)
    precision = torch.float32 if model_path.suffix == ".onnx" else select_dtype("auto", target)[0]
    plain, augmented = (
        softmax(
            predictor.predict_logits(model, PIXELS[:4], batch_size=4, precision=precision, augmented=tta).numpy(),
            saved_model.fitted_temperature(config, augmented=tta),
        )
        for tta in (False, True)
    )
    expected = np.where(plain.max(axis=1, keepdims=True) < classifier.SURE, augmented, plain)
    for index, (prediction, row) in enumerate(zip(results, expected, strict=True)):
        assert (prediction.index, prediction.file) == (index, "abcd"[index])
        assert prediction.labels == np.argsort(-row)[:3].tolist()
        assert prediction.class_names == [config["classes"][label] for label in prediction.labels]
        assert prediction.confidences == pytest.approx(np.sort(row)[::-1][:3].tolist(), rel=1e-2)  # bfloat16, by batch
    assert counts == Counts(predicted=4, skipped=1, ignored=5)


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        (Counts(9), ""),
        (Counts(9, skipped=1), ", 1 skipped"),
        (Counts(9, skipped=1000, ignored=1), ", 1,000 skipped, 1 other file ignored"),
        (Counts(9, ignored=2), ", 2 other files ignored"),
    ],
)
def test_skipped_and_ignored_files_are_counted_in_one_line(counts: Counts, text: str) -> None:
    assert counts.skipped_text() == text


def test_a_higher_temperature_tta_lowers_confidences(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "SURE", 1.1)  # every image gets test-time augmentation
    config = json.loads((project / "data/model/model.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(project / "data/model/model.safetensors")

    def confidences(temperature: float) -> list[float]:
        (tmp_path / "model.json").write_text(json.dumps(config | {"temperature": 9.0, "temperature_tta": temperature}))
        chunks = [Chunk(["a"] * 4, PIXELS[:4], [])]
        loaded = load_classifier(tmp_path)
        results = predictions.predict_images(loaded, chunks, Counts(), strict=True, batch_size=4)
        return [prediction.confidences[0] for prediction in results]

    assert all(higher < lower for higher, lower in zip(confidences(2.0), confidences(1.0), strict=True))


@pytest.mark.parametrize(
    ("config", "plain", "augmented"),
    [({}, 1.0, 1.0), ({"temperature": 2.0}, 2.0, 2.0), ({"temperature": 2.0, "temperature_tta": 3.0}, 2.0, 3.0)],
)
def test_configs_of_early_models_have_both_temperatures(
    config: dict[str, float], plain: float, augmented: float
) -> None:
    assert saved_model.fitted_temperature(config, augmented=False) == plain
    assert saved_model.fitted_temperature(config, augmented=True) == augmented


def test_reading_and_writing_take_less_than_a_fifth_of_the_time(tmp_path: Path) -> None:
    """Measures CPU time with the real network; the median of three, because other processes disturb it."""
    values = load_params(ROOT / "params.yaml").model
    statistics = {"channel_mean": [0.5] * 3, "channel_std": [0.25] * 3, "classes": list(cifar10.CLASSES)}
    saved_model.save_model(
        tmp_path,
        resnet.build_model(values, [0.5] * 3, [0.25] * 3, num_classes=10),
        saved_model.model_config(values, statistics, {}, mirror_views=True),
    )
    pixels = np.tile(PIXELS, (60, 1, 1, 1))
    np.save(tmp_path / "a.npy", pixels)
    loaded, target = load_classifier(tmp_path), select_device()
    model, _ = saved_model.load_model(tmp_path, target)
    precision, _ = select_dtype("auto", target)

    def network_share() -> float:
        chunks, stream = image_reader.read_images(["a.npy"], tmp_path, batch_size=200), StringIO()
        rows = predictions.predict_images(loaded, chunks, Counts(), strict=True, batch_size=200)
        predictions.write_predictions_csv(stream, islice(rows, 200))  # loads the model and warms it up
        start = time.process_time()
        predictions.write_predictions_csv(stream, rows)
        total, start = time.process_time() - start, time.process_time()
        predictor.predict_logits(model, pixels[200:], batch_size=200, precision=precision, augmented=True)
        assert len(stream.getvalue().splitlines()) == 601
        return (time.process_time() - start) / total

    assert median(network_share() for _ in range(3)) >= 0.8


def test_a_read_error_with_strict_and_no_image_at_all_are_errors(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_classifier(project / "data/model")
    unreadable = Chunk([], PIXELS[:0], ["bad.png: broken"])
    with pytest.raises(UserError, match=r"^bad.png: broken$"):
        list(predictions.predict_images(loaded, [unreadable], Counts(), strict=True, batch_size=4))
    with pytest.raises(UserError, match="no image to predict"):
        list(predictions.predict_images(loaded, [unreadable], Counts(), strict=False, batch_size=4))
    assert capsys.readouterr().err == "skipped: bad.png: broken\n"


def test_the_csv_has_two_columns_per_class() -> None:
    assert write("csv", CAT, DOG) == (
        "index,file,label,class_name,confidence,class_name_2,confidence_2\n"
        "0,a.png,3,cat,0.750000,dog,0.125000\n"
        "1,b.png,5,dog,0.500000,cat,0.250000\n"
    )


def test_the_json_is_an_array_with_one_object_per_line() -> None:
    text = write("json", CAT, DOG)
    assert json.loads(text)[1]["classes"][0] == {"label": 5, "class_name": "dog", "confidence": 0.5}
    assert len(text.splitlines()) == 4


def test_the_table_has_one_line_per_image() -> None:
    assert write("table", CAT) == "cat         75.0%  dog         12.5%  a.png\n"


@given(st.lists(st.text(st.characters(codec="utf-16", exclude_categories=[])), min_size=1, max_size=5))
def test_any_names_leave_the_csv_and_the_json_well_formed(names: list[str]) -> None:
    printable_names = [image_reader.printable(name) for name in names]
    rows = [Prediction(index, name, [0], ["cat"], [1.0]) for index, name in enumerate(printable_names)]
    table = write("csv", *rows)
    table.encode()
    assert [row["file"].removeprefix("'") for row in csv.DictReader(StringIO(table))] == [
        name.removeprefix("'") for name in printable_names
    ]
    assert len(table.splitlines()) == len(names) + 1
    assert [entry["file"] for entry in json.loads(write("json", *rows))] == printable_names


@pytest.mark.parametrize("name", ["=1+1.png", "+a.png", "-a.png", "@a.png"])
def test_no_name_is_written_as_a_formula(name: str) -> None:
    table = write("csv", Prediction(0, name, [0], ["cat"], [1.0]))
    assert list(csv.reader(StringIO(table)))[1][1] == f"'{name}"
