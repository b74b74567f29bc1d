"""Exported files: equality with torch for every preset, metadata, int8, refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT, tiny_images
from torch import nn

from cifar_resnet.data.cifar10 import CLASSES
from cifar_resnet.errors import UserError
from cifar_resnet.files import file_hash, write_json
from cifar_resnet.inference import onnx_graph
from cifar_resnet.inference.backend import load_torch
from cifar_resnet.inference.onnx_export import export_model
from cifar_resnet.inference.onnx_session import open_exported
from cifar_resnet.inference.predictor import predict_logits
from cifar_resnet.models import resnet, saved_model
from cifar_resnet.models.mirrored_convolution import MirroredConvolution
from cifar_resnet.params.file import load_params, parse_yaml, with_overrides
from cifar_resnet.params.schema import ModelParams

PIXELS = tiny_images(4, seed=3).pixels
CPU = torch.device("cpu")
SMALL = {"model.channels": [8, 12, 16], "model.blocks": [1, 2, 1]}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "gelu": {"model.activation": "gelu", "model.skip_kernels": [1, 3, 5]},
    "average head": {"model.head_pool": "average", "model.head_pool_kernel": 2},
    "stride": {"model.downsample": "stride", "model.head_pool_kernel": 4},
    **{path.stem: parse_yaml(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "presets").glob("*.yaml"))},
}


def small_model(variant: str) -> tuple[resnet.ResNet, ModelParams]:
    """A small network of the variant's form, with statistics of batch norms that are not the initial ones."""
    torch.manual_seed(0)
    overrides = {key: value for key, value in VARIANTS[variant].items() if key.startswith("model.")}
    overrides = {**overrides, **SMALL, "model.max_parameters": 5_000_000, "train.low_resolution_share": 0}
    params = with_overrides(load_params(ROOT / "params.yaml"), overrides).model
    model = resnet.build_model(params, [0.49, 0.48, 0.45], [0.25, 0.24, 0.26], num_classes=10)
    resnet.init_whitening(model, torch.from_numpy(PIXELS), 5e-4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.bias.data.normal_()
    return model.eval(), params


def save(folder: Path, variant: str = "default") -> resnet.ResNet:
    model, params = small_model(variant)
    statistics = {"channel_mean": [0.49, 0.48, 0.45], "channel_std": [0.25, 0.24, 0.26], "classes": list(CLASSES)}
    config = saved_model.model_config(
        params, statistics, {"temperature": 2.0, "temperature_tta": 3.0}, mirror_views=True
    )
    saved_model.save_model(folder, model, config | {"provenance": {"git_commit": "0123abc"}})
    return model


def project_with_images(root: Path) -> Path:
    """A project with a saved model and prepared training images."""
    save(root / "data/model")
    (root / "data/prepared").mkdir()
    np.save(root / "data/prepared/train_images.npy", tiny_images(18, seed=3).pixels)  # not a multiple of the batch
    return root


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_export_has_the_logits_and_probabilities_of_torch(variant: str, tmp_path: Path) -> None:
    model, params = small_model(variant)
    graph = onnx_graph.build_graph(model, params, 2.0)
    onnx.checker.check_model(graph, full_check=True)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    logits, probabilities = session.run(["logits", "probabilities"], {"images": PIXELS})
    expected = predict_logits(model, PIXELS, batch_size=20, precision=torch.float32)
    assert np.allclose(logits, expected, rtol=1e-4, atol=1e-3)  # float32 in another order
    assert np.allclose(probabilities, torch.softmax(expected / 2, 1), atol=1e-4)
    assert session.run(["logits"], {"images": PIXELS[:0]})[0].shape == (0, 10)
    assert not {node.op_type for node in graph.graph.node} & {"BatchNormalization", "Split", "Concat"}


def test_an_unfolded_mirrored_convolution_is_the_folded_one() -> None:
    torch.manual_seed(0)
    conv = MirroredConvolution(6, 10, 3)
    x = torch.randn(2, 6, 7, 7).contiguous(memory_format=torch.channels_last)
    plain = torch.conv2d(x, onnx_graph.plain_filters(conv), padding=1)
    assert torch.allclose(plain, conv(x), atol=1e-5)


def test_a_file_says_what_it_is(tmp_path: Path) -> None:
    save(tmp_path)
    comparison = export_model(tmp_path, tmp_path / "a.onnx", precision="float32", root=tmp_path)
    classifier, metadata = open_exported(tmp_path / "a.onnx")
    assert metadata.classes == list(CLASSES) == list(classifier.classes)
    assert (metadata.temperature, metadata.temperature_tta, metadata.mirror_views) == (2.0, 3.0, True)
    assert (metadata.precision, metadata.license) == ("float32", "MIT")
    assert metadata.provenance == {"git_commit": "0123abc"}
    assert metadata.weights_md5 == file_hash(tmp_path / "model.safetensors")
    assert comparison.images == "200 images of noise"
    assert comparison.difference < 1e-3


def test_an_exported_network_has_the_classes_and_the_mirror_views_of_the_saved_one(tmp_path: Path) -> None:
    params = small_model("default")[1]
    model = resnet.build_model(params, [0.5] * 3, [0.25] * 3, num_classes=3)
    statistics = {"channel_mean": [0.5] * 3, "channel_std": [0.25] * 3, "classes": ["cat", "dog", "owl"]}
    saved_model.save_model(tmp_path, model, saved_model.model_config(params, statistics, {}, mirror_views=False))
    export_model(tmp_path, tmp_path / "a.onnx", precision="float32", root=tmp_path)
    classifier, metadata = open_exported(tmp_path / "a.onnx")
    assert classifier.logits_fn(PIXELS).shape == (len(PIXELS), 3)
    assert classifier.mirror_views == metadata.mirror_views == load_torch(tmp_path, CPU).mirror_views == False  # noqa: E712


@pytest.mark.parametrize("mirrored", [True, False])
def test_a_file_before_0_1_0_has_mirror_views_unless_its_network_is_mirrored(mirrored: bool, tmp_path: Path) -> None:
    save(tmp_path)
    export_model(tmp_path, tmp_path / "a.onnx", precision="float32", root=tmp_path)
    graph = onnx.load(tmp_path / "a.onnx")
    old = {entry.key: entry.value for entry in graph.metadata_props if entry.key != "mirror_views"}
    onnx.helper.set_model_props(graph, old | {"mirrored": json.dumps(mirrored)})
    onnx.save(graph, tmp_path / "a.onnx")
    assert open_exported(tmp_path / "a.onnx")[0].mirror_views == (not mirrored)


def test_an_int8_file_is_a_quarter_as_large_and_predicts_nearly_the_same(tmp_path: Path) -> None:
    root = project_with_images(tmp_path)
    for precision in ("float32", "int8"):
        export_model(root / "data/model", root / f"{precision}.onnx", precision=precision, root=root)  # type: ignore[arg-type]
    full, small = (open_exported(root / f"{name}.onnx")[0].logits_fn(PIXELS) for name in ("float32", "int8"))
    assert np.sqrt(np.mean((full - small) ** 2)) < 0.1 * full.std()
    weights = [
        value for value in onnx.load(root / "int8.onnx").graph.initializer if value.data_type == onnx.TensorProto.INT8
    ]
    assert sum(np.prod(value.dims) for value in weights) > 0.9 * 9 * (
        24 * 8 + 2 * 64 + 8 * 12 + 4 * 144 + 12 * 16 + 512
    )
    largest = max(np.abs(onnx.numpy_helper.to_array(value).astype(int)).max() for value in weights)
    assert largest <= 64  # two products of a weight and 255 fit into 16 bits


def test_int8_needs_training_images(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(UserError, match=r"train_images.npy: not found, or of other classes than the model; int8 needs"):
        export_model(tmp_path, tmp_path / "a.onnx", precision="int8", root=tmp_path)


def test_training_images_of_other_classes_are_not_used(tmp_path: Path) -> None:
    root = project_with_images(tmp_path)
    write_json(root / "data/prepared/statistics.json", {"classes": ["cat", "dog"]})
    with pytest.raises(UserError, match=r"or of other classes than the model"):
        export_model(root / "data/model", root / "a.onnx", precision="int8", root=root)
    assert not (root / "a.onnx").exists()
    compared = export_model(root / "data/model", root / "a.onnx", precision="float32", root=root)
    assert compared.images == "200 images of noise"


def test_damaged_training_images_are_an_error(tmp_path: Path) -> None:
    root = project_with_images(tmp_path)
    images = root / "data/prepared/train_images.npy"
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train_images.npy: not a readable .npy array .*run `dvc repro preprocess`"):
        export_model(root / "data/model", root / "a.onnx", precision="int8", root=root)


def test_an_export_that_differs_from_torch_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path)
    monkeypatch.setattr(onnx_graph, "scale_and_bias", lambda norm: (torch.ones(1), torch.zeros(norm.num_features)))
    with pytest.raises(UserError, match="differs too much and is not kept"):
        export_model(tmp_path, tmp_path / "a.onnx", precision="float32", root=tmp_path)
    assert not (tmp_path / "a.onnx").exists()


def damaged(graph: onnx.ModelProto, problem: str) -> bytes:
    """The content of a file with a problem."""
    if problem == "opset":
        graph.opset_import[0].version = 99
    elif problem == "type":
        graph.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    elif problem == "name":
        graph.graph.node[0].input[0] = graph.graph.input[0].name = "x"
    elif problem == "metadata":
        del graph.metadata_props[:]
    return b"no model" if problem == "text" else graph.SerializeToString()


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("text", r"ONNX Runtime cannot read it \(Protobuf parsing failed"),
        ("opset", r"ONNX Runtime cannot read it \(ONNX Runtime only .*opset"),
        ("type", r"its input is images: tensor\(float\) .*tensor\(uint8\) \['N', 3, 32, 32\] needed"),
        ("name", r"its input is x: tensor\(uint8\)"),
        ("metadata", "its metadata has no usable classes"),
    ],
)
def test_another_file_is_refused_in_one_line(problem: str, message: str, tmp_path: Path) -> None:
    save(tmp_path)
    export_model(tmp_path, tmp_path / "a.onnx", precision="float32", root=tmp_path)
    (tmp_path / "a.onnx").write_bytes(damaged(onnx.load(tmp_path / "a.onnx"), problem))
    with pytest.raises(UserError, match=message) as raised:
        open_exported(tmp_path / "a.onnx")
    assert str(raised.value).startswith(f"{tmp_path / 'a.onnx'}: ")
    assert str(raised.value).endswith("; `cifar-resnet export` writes a usable file")
    assert "\n" not in str(raised.value)
