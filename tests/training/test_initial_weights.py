import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, tiny_images, tiny_params

from cifar_resnet.data.dataset import Images
from cifar_resnet.errors import UserError
from cifar_resnet.files import file_hash
from cifar_resnet.models.saved_model import load_model, model_config, save_model
from cifar_resnet.params.file import load_params, parse_yaml, with_overrides
from cifar_resnet.training.distributed import World
from cifar_resnet.training.initial_weights import InitialWeights, load_initial_weights
from cifar_resnet.training.loop import TrainState, init_train_state

TRAIN = tiny_images(20, seed=0)
STATISTICS = {"channel_mean": [0.49, 0.48, 0.45], "channel_std": [0.25, 0.24, 0.26], "classes": ["cat", "dog", "owl"]}


def start(images: Images = TRAIN, initial: InitialWeights | None = None, **statistics: Any) -> TrainState:
    params = tiny_params()
    return init_train_state(params.model, params.train, images, STATISTICS | statistics, World(), initial=initial)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A saved network for three classes, with statistics of batch norms that are not the initial ones."""
    model = start().model
    for buffer in model.buffers():
        if buffer.is_floating_point() and buffer.ndim == 1:
            buffer.uniform_(0.5, 2)
    save_model(tmp_path / "source", model, model_config(tiny_params().model, STATISTICS, {}, mirror_views=True))
    return tmp_path / "source"


def load(source: Path, **model: Any) -> InitialWeights:
    initial = load_initial_weights(source.parent, source.name, tiny_params(model=model).model)
    assert initial is not None
    return initial


def test_none_starts_from_random_weights(tmp_path: Path) -> None:
    assert load_initial_weights(tmp_path, "none", tiny_params().model) is None


def test_a_training_starts_from_all_weights_but_the_head_also_for_other_classes_and_images(source: Path) -> None:
    initial = load(source, max_parameters=4_000_000)
    assert (initial.name, initial.weights_md5) == ("source", file_hash(source / "model.safetensors"))
    statistics = initial.channel_statistics | {"classes": ["a", "b", "c", "d", "e"]}
    state = start(tiny_images(4, seed=5), initial, **statistics)
    saved = load_model(source, torch.device("cpu"))[0].state_dict()
    for model in (state.model, state.ema_model):
        for name, value in model.state_dict().items():
            if not name.startswith("head."):
                torch.testing.assert_close(value, saved[name], rtol=1e-5, atol=1e-6)  # Muon normalizes the filters
        assert model.head.weight.shape == (5, saved["head.weight"].shape[1])
    assert initial.channel_statistics == {key: STATISTICS[key] for key in ("channel_mean", "channel_std")}


def test_the_head_is_that_of_a_random_start(source: Path) -> None:
    assert torch.equal(start(initial=load(source)).model.head.weight, start().model.head.weight)


def test_pretrained_names_the_weights_of_the_package(shipped_pretrained: Path, tmp_path: Path) -> None:
    initial = load_initial_weights(tmp_path, "pretrained", tiny_params().model)
    assert initial is not None
    assert initial.weights_md5 == file_hash(shipped_pretrained / "model.safetensors")


def test_another_architecture_is_refused_in_one_line_that_names_the_differing_keys(source: Path) -> None:
    message = (
        r"^params.yaml: train.init is source, whose network differs in model.channels \(there \[8, 16\], here "
        r"\[8, 24\]\), model.activation \(there silu, here gelu\): take its values, or train.init: none$"
    )
    with pytest.raises(UserError, match=message):
        load(source, channels=[8, 24], activation="gelu")


@pytest.mark.parametrize("missing", ["model.safetensors", "model.json"])
def test_a_folder_without_a_model_is_refused_in_one_line(missing: str, source: Path) -> None:
    (source / missing).unlink()
    message = r"^params.yaml: train.init is source, which has no model.safetensors and model.json: none, pretrained or"
    with pytest.raises(UserError, match=message):
        load(source)


def test_damaged_weights_are_refused_in_one_line(source: Path) -> None:
    (source / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"source: no usable model \(.*\); `dvc repro train` writes one") as raised:
        load(source)
    assert "\n" not in str(raised.value)


def test_an_absolute_path_is_allowed(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "elsewhere")
    assert load_initial_weights(Path("/"), str(tmp_path / "elsewhere"), tiny_params().model) is not None


@pytest.mark.parametrize(
    ("flip", "mirrored", "mirror_views"),
    [("alternating", False, True), ("random", False, True), ("none", False, False), ("none", True, False),
     ("alternating", True, False)],
)  # fmt: skip
def test_only_a_network_that_saw_mirror_images_and_is_not_symmetric_has_mirror_views(
    flip: str, mirrored: bool, mirror_views: bool
) -> None:
    params = tiny_params(train={"flip": flip}, model={"mirrored": mirrored})
    state = init_train_state(params.model, params.train, TRAIN, STATISTICS, World())
    assert state.model.mirror_views == state.ema_model.mirror_views == mirror_views


@pytest.mark.parametrize("preset", ["own", "robust"])
def test_the_shipped_weights_have_the_network_of_the_presets_that_name_them(preset: str) -> None:
    values = parse_yaml((ROOT / f"presets/{preset}.yaml").read_text(encoding="utf-8"))
    params = with_overrides(load_params(ROOT / "params.yaml"), values)
    assert load_initial_weights(ROOT, "pretrained", params.model) is not None
