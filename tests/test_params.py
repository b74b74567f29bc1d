import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, tiny_values

from cifar_resnet.errors import UserError
from cifar_resnet.models import resnet
from cifar_resnet.params.file import Params, load_params, with_overrides
from cifar_resnet.search.results import to_yaml


def load(root: Path, section: str, key: str, value: object) -> Params:
    values = tiny_values()
    values[section][key] = value
    (root / "params.yaml").write_text(yaml.safe_dump(values))
    return load_params(root / "params.yaml")


def test_the_committed_file_is_valid() -> None:
    assert load_params(ROOT / "params.yaml").model.max_parameters == 5_000_000


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("train", "epochs", "many", "params.yaml: train.epochs is 'many': input should be a valid integer"),
        ("train", "epochs", 0, "params.yaml: train.epochs is 0: input should be greater than 0"),
        ("train", "epochs", True, "params.yaml: train.epochs is True: input should be a valid integer"),
        ("train", "epoch", 3, "params.yaml: train.epoch is unknown; remove it or correct the spelling"),
        ("train", "filter_lr", float("nan"), "params.yaml: train.filter_lr is nan: input should be a finite number"),
        ("train", "optimizer", "adam", "params.yaml: train.optimizer is 'adam': input should be 'muon' or 'sgd'"),
        ("train", "warmup_epochs", 9, "params.yaml: train.warmup_epochs is 9.0: must be below epochs (3)"),
        ("model", "blocks", [1], "params.yaml: model.blocks is [1]: as many values as channels (2) needed"),
        ("model", "kernels", [3, 4], "params.yaml: model.kernels is [3, 4]: only odd kernels keep the size"),
        (
            "model",
            "head_pool_kernel",
            8,
            "params.yaml: model.head_pool_kernel is 8: 2 layers shrink 32 pixels to 7, so take fewer",
        ),
        ("model", "stem_channels", 16, "params.yaml: model.stem_channels is 16: a whitening stem has exactly 24"),
        (
            "model",
            "head_pool_kernel",
            1,
            "params.yaml: model.head_pool_kernel is 1: with train.low_resolution_epochs it must leave as much",
        ),
        ("search", "space", {}, "params.yaml: search.space is {}: dictionary should have at least 1 item"),
        (
            "search",
            "space",
            {"train.lr": [1]},
            "params.yaml: search.space.train.lr is unknown; allowed are model.layers",
        ),
        ("search", "space", {"train.epochs": [1]}, "params.yaml: search.space.train.epochs is unknown; allowed are"),
        (
            "search",
            "space",
            {"model.head_pool_kernel": []},
            "params.yaml: search.space.model.head_pool_kernel is []: at least one choice needed",
        ),
        (
            "search",
            "space",
            {"model.head_pool_kernel": ["x"]},
            "params.yaml: search.space.model.head_pool_kernel holds 'x': input should be a",
        ),
        (
            "search",
            "space",
            {"model.head_pool_kernel": 3},
            "params.yaml: search.space.model.head_pool_kernel is 3: a list of choices or {low",
        ),
        (
            "search",
            "space",
            {"train.filter_lr": {"low": 2.0, "high": 1.0, "scale": "log"}},
            "params.yaml: search.space.train.filter_lr is from 2.0 to 1.0: low must be below high",
        ),
        (
            "search",
            "space",
            {"train.weight_decay": {"low": 0.0, "high": 0.1, "scale": "log"}},
            "params.yaml: search.space.train.weight_decay is from 0.0 to 0.1: low must be below high, and above 0",
        ),
        (
            "search",
            "sampler",
            "grid",
            "params.yaml: search.sampler is 'grid': input should be 'random', 'tpe' or 'nsga2'",
        ),
        ("search", "sampler", "nsga2", "params.yaml: search.pruner is median: nsga2 weighs accuracy against cost"),
        (
            "search",
            "storage",
            "mysql://x/y",
            "params.yaml: search.storage is 'mysql://x/y': string should match pattern",
        ),
        ("download", "sources", [], "params.yaml: download.sources is []: list should have at least 1 item"),
    ],
)
def test_a_mistake_is_one_line_with_key_value_and_what_is_allowed(
    tmp_path: Path, section: str, key: str, value: object, said: str
) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, section, key, value)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_a_network_that_shrinks_below_one_pixel_is_refused(tmp_path: Path) -> None:
    values = tiny_values()
    values["model"] |= {name: [3] * 6 for name in ("channels", "blocks", "kernels", "skip_kernels")} | {
        "head_pool_kernel": 1
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match="6 layers shrink 32 pixels to 0"):
        load_params(tmp_path / "params.yaml")


def test_a_missing_key_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"params.yaml: not found"):
        load_params(tmp_path / "params.yaml")
    values = tiny_values()
    del values["train"]["seed"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"params.yaml: train.seed is missing"):
        load_params(tmp_path / "params.yaml")


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    values = tiny_values()
    values["train"]["epochs"] = 0
    values["evaluate"]["batch_size"] = "big"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError) as caught:
        load_params(tmp_path / "params.yaml")
    assert len(str(caught.value).splitlines()) == 2


def test_text_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("train: [1")
    with pytest.raises(UserError, match="not valid YAML"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_preset_is_allowed_and_make_hands_each_of_its_values_to_dvc(path: Path) -> None:
    preset = yaml.safe_load(path.read_text(encoding="utf-8"))
    values = with_overrides(load_params(ROOT / "params.yaml"), preset)
    assert resnet.num_parameters(resnet.build_model(values.model, [0.5] * 3, [0.25] * 3)) < 5_000_000
    said = make("-n", "-o", ".venv/ready", "preset", f"NAME={path.stem}", "MORE=-S train.seed=1").stdout
    words = " ".join(f"-S '{name}={to_yaml(value)}'" for name, value in preset.items())
    assert f"dvc exp run --temp --name '{path.stem}' {words} -S train.seed=1\n" in said


def test_an_unknown_preset_is_refused_with_those_that_exist() -> None:
    done = make("-o", ".venv/ready", "preset", "NAME=wild")
    assert done.returncode == 2
    assert "NAME='wild' is no preset; there are" in done.stderr
    assert "\n  wide: " in done.stderr


def make(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, check=False)
