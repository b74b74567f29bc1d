import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, dump_yaml, tiny_values
from dvc.utils import serialize
from dvc.utils.hydra import apply_overrides
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cifar_resnet.errors import UserError
from cifar_resnet.models import resnet
from cifar_resnet.params.file import (
    Params,
    flatten,
    load_params,
    parse_yaml,
    raw_sections,
    replace_values,
    with_overrides,
)
from cifar_resnet.params.overrides import preset_options, to_hydra
from cifar_resnet.params.schema import Section


def load(root: Path, section: str, key: str, value: object) -> Params:
    values = tiny_values()
    values[section][key] = value
    (root / "params.yaml").write_text(dump_yaml(values))
    return load_params(root / "params.yaml")


def test_the_committed_file_is_valid() -> None:
    assert load_params(ROOT / "params.yaml").model.max_parameters == 5_000_000


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("train", "epochs", "many", "params.yaml: train.epochs is 'many': input should be a valid integer"),
        ("train", "epochs", 0, "params.yaml: train.epochs is 0: input should be greater than 0"),
        ("train", "epochs", True, "params.yaml: train.epochs is True: input should be a valid integer"),
        ("train", "epoch", 3, "params.yaml: train.epoch is unknown; remove it or correct the spelling"),
        ("train", "filter_lr", float("nan"), "params.yaml: train.filter_lr is nan: input should be a finite number"),
        ("train", "optimizer", "adam", "params.yaml: train.optimizer is 'adam': input should be 'muon' or 'sgd'"),
        ("train", "warmup_epochs", 9, "params.yaml: train.warmup_epochs is 9.0: must be below epochs (3)"),
        (
            "train",
            "low_resolution_share",
            1.0,
            "params.yaml: train.low_resolution_share is 1.0: input should be less than 1",
        ),
        ("train", "seed", 2**32, "params.yaml: train.seed is 4294967296: input should be less than 4294967296"),
        ("model", "blocks", [1, 101], "params.yaml: model.blocks.1 is 101: input should be less than or equal to 100"),
        ("preprocess", "test_share", 0.9, "params.yaml: preprocess.test_share is 0.9: with validation_share 0.1"),
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
            "params.yaml: model.head_pool_kernel is 1: the pooled maps must have the same size at",
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
            "space",
            {"train.init": ["none", "pretrained"]},
            "params.yaml: search.space.train.init is unknown; allowed are model.layers",
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
        ("download", "dataset", "own", "params.yaml: download.dataset is 'own': input should be 'cifar10' or 'folder'"),
        ("download", "folder", "", "params.yaml: download.folder is '': string should have at least 1 character"),
        ("preprocess", "test_share", 0.0, "params.yaml: preprocess.test_share is 0.0: input should be greater than or"),
        (
            "preprocess",
            "test_share",
            0.95,
            "params.yaml: preprocess.test_share is 0.95: with validation_share 0.1 it leaves too few training",
        ),
        ("download", "sources", [], "params.yaml: download.sources is []: list should have at least 1 item"),
    ],
)
def test_an_error_message_is_one_line_with_the_key_the_value_and_what_is_allowed(
    tmp_path: Path, section: str, key: str, value: object, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, section, key, value)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_layers_that_shrink_the_image_below_one_pixel_are_an_error(tmp_path: Path) -> None:
    values = tiny_values()
    values["model"] |= {name: [3] * 6 for name in ("channels", "blocks", "kernels", "skip_kernels")} | {
        "head_pool_kernel": 1
    }
    (tmp_path / "params.yaml").write_text(dump_yaml(values))
    with pytest.raises(UserError, match="6 layers shrink 32 pixels to 0"):
        load_params(tmp_path / "params.yaml")


def test_the_message_names_a_missing_key_or_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"params.yaml: not found"):
        load_params(tmp_path / "params.yaml")
    values = tiny_values()
    del values["train"]["seed"]
    (tmp_path / "params.yaml").write_text(dump_yaml(values))
    with pytest.raises(UserError, match=r"params.yaml: train.seed is missing"):
        load_params(tmp_path / "params.yaml")


def test_the_message_has_a_line_for_every_mistake(tmp_path: Path) -> None:
    values = tiny_values()
    values["train"]["epochs"] = 0
    values["evaluate"]["batch_size"] = "big"
    (tmp_path / "params.yaml").write_text(dump_yaml(values))
    with pytest.raises(UserError) as caught:
        load_params(tmp_path / "params.yaml")
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train: [1", "not valid YAML: line 1, column 10: expected ',' or ']', but got '<stream end>'"),
        (b"train:\n\tseed: 0\n", "not valid YAML: line 2, column 1: found character '\\t' that cannot start any token"),
        (
            b"a: 1\na: 2\n",
            'not valid YAML: line 2, column 1: found duplicate key "a" with value "2" (original value: "1")',
        ),
        ("a: ä".encode("latin-1"), "not valid YAML: not UTF-8 text; save it with this encoding"),
        ("a: b".encode("utf-16"), "not valid YAML: not UTF-8 text; save it with this encoding"),
        (b"register: {model_name: 2026-02-30}", "not valid YAML: day is out of range for month"),
        (b"a: " + 3000 * b"[", "not valid YAML: maximum recursion depth exceeded"),
        (b"", "sections needed, for example `train:`; nothing found"),
        (b"- train", "sections needed, for example `train:`; other values found"),
    ],
)
def test_a_file_without_sections_is_an_error_that_names_the_place(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_params(tmp_path / "params.yaml")
    assert str(caught.value) == f"params.yaml: {message}"


def test_a_file_that_cannot_be_read_is_not_said_to_be_missing(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").mkdir()
    with pytest.raises(UserError, match=r"params.yaml: cannot be read \(Is a directory\)"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("start", ["\ufeff", ""])
def test_a_file_of_a_windows_editor_is_read(tmp_path: Path, start: str) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(start + text, encoding="utf-8", newline="\r\n")
    assert load_params(tmp_path / "params.yaml") == load_params(ROOT / "params.yaml")


@pytest.mark.parametrize(("number", "value"), [("1e-05", 0.00001), ("5e-4", 0.0005)])
def test_a_float_of_yaml_1_2_is_a_number(tmp_path: Path, number: str, value: float) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    text = re.sub(r"(?<=\n  weight_decay: )\S+", number, text)
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    assert load_params(tmp_path / "params.yaml").train.weight_decay == value


def test_yaml_is_read_as_dvc_reads_it() -> None:
    text = "train: {epochs: 010, filter_lr: 1e-05, flip: no, resolution: 0x10, minutes: 1:30, none: ~}"
    values = parse_yaml(text)
    assert values["train"]["epochs"] == 10
    assert values == serialize.parse_yaml(text, "params.yaml")


def test_a_duplicate_key_is_an_error_as_in_dvc(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8") + "\ntrain:\n  epochs: 1\n"
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r'not valid YAML: .*duplicate key "train"'):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(serialize.ParseError):
        serialize.parse_yaml(text, "params.yaml")


LAYOUT = """\
# what is trained

model:                 # the network
  channels: [64, 256]  # per layer
  name: 'quoted'

train:
  epochs: 13           # passes over the images
  weight_decay: 0.002  # per step
  # at the end
"""


def test_replaced_values_keep_comments_and_layout() -> None:
    assert replace_values(LAYOUT, {}) == LAYOUT
    replaced = replace_values(LAYOUT, {"model.channels": [8], "train.epochs": 4, "train.weight_decay": 1e-05})
    expected = LAYOUT.replace("[64, 256]  #", "[8]        #").replace("13 ", "4  ").replace("0.002", "1e-05")
    assert replaced == expected


def test_null_stays_null() -> None:
    text = "search:\n  limit: null  # none\n  trials: 4\n"
    assert replace_values(text, {"search.trials": 8}) == text.replace("4", "8")


def test_a_replaced_small_float_is_read_back(tmp_path: Path) -> None:
    text = replace_values((ROOT / "params.yaml").read_text(encoding="utf-8"), {"train.weight_decay": 1e-05})
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    assert "\n  weight_decay: 1e-05 " in text
    assert load_params(tmp_path / "params.yaml").train.weight_decay == 1e-05


def test_a_replaced_list_keeps_the_block_style_that_dvc_writes(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(LAYOUT, encoding="utf-8")
    apply_overrides(path, ["model.channels=[8,16]"])  # what `dvc exp run -S` calls
    text = path.read_text(encoding="utf-8")
    assert "\n  - 8\n  - 16\n" in text
    replaced = replace_values(text, {"model.channels": [32, 64, 128]})
    assert replaced == text.replace("  - 8\n  - 16\n", "  - 32\n  - 64\n  - 128\n")


TEXT = st.text(st.characters(codec="utf-8", categories=["L", "M", "N", "P", "S", "Zs"])).filter(lambda s: "${" not in s)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT


@settings(deadline=None)
@given(SCALAR | st.lists(SCALAR))
@example(1e-05)
@example(["no", "on", "null", "~", "1e-5", "0x10", "010", "1_000", "1:30", "2026-01-01", ".inf", ""])
@example('data/it\'s a #1 \\"photo".png\\')
def test_dvc_records_every_value_as_the_program_reads_it(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    path = tmp_path_factory.mktemp("values") / "params.yaml"
    path.write_text("section: {key: 1, other: 1}\n", encoding="utf-8")
    apply_overrides(path, [f"section.key={to_hydra(value)}"])  # what `dvc exp run -S` calls
    text = path.read_text(encoding="utf-8")
    assert parse_yaml(text) == serialize.parse_yaml(text, "params.yaml") == {"section": {"key": value, "other": 1}}
    replaced = replace_values("section: {key: 1, other: 1}\n", {"section.key": value})  # what `search apply` calls
    assert parse_yaml(replaced) == parse_yaml(text)


def test_a_preset_is_yaml(tmp_path: Path) -> None:
    preset = {"predict.input": "my photos/it's #1.png", "train.weight_decay": 1e-05, "model.channels": [8, 16]}
    path = tmp_path / "mine.yaml"
    path.write_text("# mine\n" + dump_yaml(preset), encoding="utf-8")  # with quotes, and a list of one line per value
    words = shlex.split(preset_options(path))
    (tmp_path / "params.yaml").write_text("predict: {input: a}\ntrain: {weight_decay: 1}\nmodel: {channels: []}\n")
    apply_overrides(tmp_path / "params.yaml", words[1::2])
    assert flatten(parse_yaml((tmp_path / "params.yaml").read_text(encoding="utf-8"))) == preset


def test_a_date_in_a_preset_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("register.model_name: 2026-02-01")
    assert preset_options(tmp_path / "mine.yaml") == "-S 'register.model_name=\"2026-02-01\"'"


@pytest.mark.parametrize("text", ["train: {epochs: 4}", "train.epochs", "", "{}", "train.epochs: [", "a: 1\na: 2"])
def test_a_preset_with_anything_but_full_names_and_values_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"mine.yaml: (a line per value needed|not valid YAML)") as caught:
        preset_options(tmp_path / "mine.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("section", [section for section in Section.__subclasses__() if section is not Params])
def test_every_section_and_field_has_a_description(section: type[Section]) -> None:
    assert section.__doc__
    assert [name for name, field in section.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("path", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_preset_is_valid_and_make_passes_all_its_values_to_dvc(path: Path, tmp_path: Path) -> None:
    preset = parse_yaml(path.read_text(encoding="utf-8"))
    values = with_overrides(load_params(ROOT / "params.yaml"), preset)
    assert resnet.num_parameters(resnet.build_model(values.model, [0.5] * 3, [0.25] * 3, num_classes=10)) < 5_000_000
    output = make("-n", "-o", ".venv/ready", "preset", f"NAME={path.stem}", "MORE=-S train.seed=1").stdout
    (tmp_path / "params.yaml").write_text(dump_yaml(tiny_values()), encoding="utf-8")
    words = shlex.split(output.splitlines()[-1])
    assert words[:6] == ["dvc", "exp", "run", "--temp", "--name", path.stem]
    assert words[-2:] == ["-S", "train.seed=1"]
    apply_overrides(tmp_path / "params.yaml", words[7::2])
    recorded = flatten(raw_sections((tmp_path / "params.yaml").read_text(encoding="utf-8")))
    assert preset | {"train.seed": 1} == {name: recorded[name] for name in (*preset, "train.seed")}


def test_make_passes_the_characters_that_make_itself_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    (tmp_path / "presets").mkdir()
    folder = "own $pictures #1 'a' $(x)"
    (tmp_path / "presets/own.yaml").write_text(dump_yaml({"download.folder": folder}), encoding="utf-8")
    output = make("-n", "-o", ".venv/ready", "preset", "NAME=own", root=tmp_path).stdout
    (tmp_path / "params.yaml").write_text(dump_yaml(tiny_values()), encoding="utf-8")
    apply_overrides(tmp_path / "params.yaml", shlex.split(output.splitlines()[-1])[7::2])
    assert load_params(tmp_path / "params.yaml").download.folder == folder


def test_an_unknown_preset_is_an_error_that_lists_the_available_ones() -> None:
    result = make("-o", ".venv/ready", "preset", "NAME=wild")
    assert result.returncode == 2
    assert "NAME='wild' is not a preset; available presets:" in result.stderr
    assert "\n  wide: " in result.stderr


def make(*arguments: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=root, capture_output=True, text=True, check=False)
