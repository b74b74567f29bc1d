from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_images
from safetensors.torch import save_file

from cifar_resnet.errors import UserError
from cifar_resnet.files import read_json, write_json
from cifar_resnet.models import resnet, saved_model
from cifar_resnet.models.resnet import ResNet
from cifar_resnet.params.schema import ModelParams

CPU = torch.device("cpu")
MEAN, STD = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]
ARCHITECTURE: dict[str, Any] = {
    "stem": "whitening",
    "stem_channels": 24,
    "channels": [8, 16],
    "blocks": [1, 1],
    "kernels": [3, 3],
    "skip_kernels": [3, 3],
    "whitening_epsilon": 0.0005,
    "downsample": "pool",
    "activation": "silu",
    "max_parameters": 5_000_000,
}
# model.json of commit 416b91a. Its weights have a buffer `deviation`, now `std`.
OLD_CONFIG: dict[str, Any] = {
    "architecture": {key: value for key, value in ARCHITECTURE.items() if key != "whitening_epsilon"}
    | {"pooling": "average", "pool": 7, "mirrored": False},
    "normalisation": {"mean": MEAN, "deviation": STD},
    "classes": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    "input": "uint8 RGB (N, 3, 32, 32)",
    "temperature": 0.5488,
    "temperature_tta": 0.5167,
    "provenance": {"seconds": 1359.7},
}


def trained_model(*, mirrored: bool = False) -> ResNet:
    """A network whose weights and running statistics all differ from their initial values."""
    torch.manual_seed(0)
    architecture = ARCHITECTURE | {"head_pool": "average", "head_pool_kernel": 7, "mirrored": mirrored}
    model = resnet.build_model(ModelParams(**architecture), MEAN, STD, num_classes=10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model(images())
    return model.eval()


def images() -> torch.Tensor:
    return torch.from_numpy(tiny_images(2, seed=0).pixels)


def save_old_model(folder: Path, model: ResNet, config: dict[str, Any]) -> None:
    weights = {"deviation" if name == "std" else name: value for name, value in model.state_dict().items()}
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / saved_model.WEIGHTS_FILE)
    write_json(folder / saved_model.CONFIG_FILE, config)


def test_a_saved_model_loads_with_the_same_logits_and_config(tmp_path: Path) -> None:
    model = trained_model(mirrored=True)
    architecture = ARCHITECTURE | {"head_pool": "average", "head_pool_kernel": 7, "mirrored": True}
    statistics = {"channel_mean": MEAN, "channel_std": STD, "classes": OLD_CONFIG["classes"]}
    config = saved_model.model_config(ModelParams(**architecture), statistics, {"temperature": 0.5}, mirror_views=False)
    saved_model.save_model(tmp_path, model, config)
    loaded, loaded_config = saved_model.load_model(tmp_path, CPU)
    assert torch.equal(loaded(images()), model(images()))
    assert loaded_config == config
    assert not loaded.training


def test_a_saved_model_keeps_its_classes_and_whether_it_has_mirror_views(tmp_path: Path) -> None:
    params = ModelParams(**ARCHITECTURE, head_pool="average", head_pool_kernel=7, mirrored=False)
    statistics = {"channel_mean": MEAN, "channel_std": STD, "classes": ["cat", "dog"]}
    model = resnet.build_model(params, MEAN, STD, num_classes=2)
    saved_model.save_model(tmp_path, model, saved_model.model_config(params, statistics, {}, mirror_views=False))
    loaded, _ = saved_model.load_model(tmp_path, CPU)
    assert loaded(images()).shape == (20, 2)
    assert not loaded.mirror_views


@pytest.mark.parametrize("mirrored", [True, False])
def test_a_model_without_the_key_mirror_views_has_them_unless_it_is_mirrored(tmp_path: Path, mirrored: bool) -> None:
    architecture = OLD_CONFIG["architecture"] | {"mirrored": mirrored}
    save_old_model(tmp_path, trained_model(mirrored=mirrored), OLD_CONFIG | {"architecture": architecture})
    loaded, config = saved_model.load_model(tmp_path, CPU)
    assert loaded.mirror_views == config["mirror_views"] == (not mirrored)


def test_weights_for_another_number_of_classes_are_an_error(tmp_path: Path) -> None:
    save_old_model(tmp_path, trained_model(), OLD_CONFIG | {"classes": ["cat", "dog"]})
    with pytest.raises(UserError, match="no usable model"):
        saved_model.load_model(tmp_path, CPU)


def test_a_model_of_commit_416b91a_loads_with_the_same_logits(tmp_path: Path) -> None:
    model = trained_model()
    save_old_model(tmp_path, model, OLD_CONFIG)
    loaded, config = saved_model.load_model(tmp_path, CPU)
    assert torch.equal(loaded(images()), model(images()))
    assert config["architecture"] == ARCHITECTURE | {"head_pool": "average", "head_pool_kernel": 7, "mirrored": False}
    assert config["normalisation"] == {"mean": MEAN, "std": STD}
    unchanged = OLD_CONFIG.keys() - {"architecture", "normalisation"}
    assert {key: config[key] for key in unchanged} == {key: OLD_CONFIG[key] for key in unchanged}


def test_a_model_without_the_key_mirrored_loads_as_an_ordinary_network(tmp_path: Path) -> None:
    model = trained_model()
    architecture = {key: value for key, value in OLD_CONFIG["architecture"].items() if key != "mirrored"}
    save_old_model(tmp_path, model, OLD_CONFIG | {"architecture": architecture})
    loaded, config = saved_model.load_model(tmp_path, CPU)
    assert torch.equal(loaded(images()), model(images()))
    assert config["architecture"]["mirrored"] is False


def test_upgrading_a_config_twice_changes_nothing_more() -> None:
    config = saved_model.upgrade_config(OLD_CONFIG)
    assert saved_model.upgrade_config(config) == config


@pytest.mark.parametrize(
    ("key", "value"), [("architecture", {}), ("normalisation", {"mean": MEAN}), ("normalisation", {"deviation": STD})]
)
def test_a_config_with_missing_keys_is_an_error_that_names_the_folder(tmp_path: Path, key: str, value: Any) -> None:
    save_old_model(tmp_path, trained_model(), OLD_CONFIG | {key: value})
    with pytest.raises(UserError, match=f"{tmp_path.name}: no usable model"):
        saved_model.load_model(tmp_path, CPU)


@pytest.mark.parametrize(
    ("key", "value"), [("temperature", 0), ("temperature", float("nan")), ("temperature_tta", -1), ("classes", [1, 2])]
)
def test_a_config_with_which_predictions_would_be_wrong_is_an_error(tmp_path: Path, key: str, value: Any) -> None:
    save_old_model(tmp_path, trained_model(), OLD_CONFIG | {key: value})
    with pytest.raises(UserError, match="needed") as caught:
        saved_model.load_model(tmp_path, CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [[], 3, {"architecture": "resnet"}])
def test_a_config_of_something_else_is_an_error_that_names_the_folder(tmp_path: Path, config: Any) -> None:
    save_old_model(tmp_path, trained_model(), OLD_CONFIG)
    write_json(tmp_path / saved_model.CONFIG_FILE, config)
    with pytest.raises(UserError, match=f"{tmp_path.name}: no usable model"):
        saved_model.load_model(tmp_path, CPU)


def test_weights_of_another_architecture_are_an_error(tmp_path: Path) -> None:
    save_old_model(tmp_path, trained_model(), OLD_CONFIG)
    config = read_json(tmp_path / saved_model.CONFIG_FILE)
    config["architecture"]["channels"] = [8, 12]
    write_json(tmp_path / saved_model.CONFIG_FILE, config)
    with pytest.raises(UserError, match="no usable model"):
        saved_model.load_model(tmp_path, CPU)


@pytest.mark.parametrize(
    ("temperatures", "plain", "augmented"),
    [({}, 1.0, 1.0), ({"temperature": 0.5}, 0.5, 0.5), ({"temperature": 0.5, "temperature_tta": 0.4}, 0.5, 0.4)],
)
def test_configs_of_early_models_have_a_temperature(
    temperatures: dict[str, float], plain: float, augmented: float
) -> None:
    assert saved_model.fitted_temperature(temperatures, augmented=False) == plain
    assert saved_model.fitted_temperature(temperatures, augmented=True) == augmented
