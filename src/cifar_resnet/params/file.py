"""params.yaml: read, check and change it. YAML 1.2, as DVC reads and writes it."""

import io
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.representer import RoundTripRepresenter

from cifar_resnet.errors import UserError
from cifar_resnet.params.schema import (
    CheckpointParams,
    DownloadParams,
    EvaluateParams,
    ModelParams,
    PredictParams,
    PreprocessParams,
    RegisterParams,
    Section,
    TrackingParams,
    TrainParams,
)
from cifar_resnet.params.search_schema import SearchParams


class Params(Section):
    """All of params.yaml; one section per stage, and those that no stage's result depends on."""

    download: DownloadParams
    preprocess: PreprocessParams
    model: ModelParams
    train: TrainParams
    checkpoint: CheckpointParams
    tracking: TrackingParams
    evaluate: EvaluateParams
    register_: Annotated[RegisterParams, Field(alias="register")]
    predict: PredictParams
    search: SearchParams

    @model_validator(mode="after")
    def _check_low_resolution(self) -> "Params":
        if self.train.low_resolution_share == 0:
            return self
        kernel, low = self.model.head_pool_kernel, self.model.resolution(self.train.low_resolution)
        if low < 1:
            raise ValueError(
                f"train.low_resolution is {self.train.low_resolution}: the {len(self.model.channels)} layers of the "
                "model shrink it below 1x1; take fewer layers or a higher resolution"
            )
        if low // min(kernel, low) != self.model.resolution(32) // kernel:
            raise ValueError(
                f"model.head_pool_kernel is {kernel}: the pooled maps must have the same size at train.low_resolution "
                f"({self.train.low_resolution} pixels) as at 32; take {self.model.resolution(32)}, or "
                "train.low_resolution_share: 0"
            )
        return self


def load_params(path: Path) -> Params:
    """Read and check params.yaml.

    Raises:
        UserError: one line per mistake with the key, its value and what is allowed.
    """
    values = read_yaml(path, path.name)
    if not isinstance(values, dict):
        content = "nothing" if values is None else "other values"
        raise UserError(f"{path.name}: sections needed, for example `train:`; {content} found")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(_error_line(path.name, mistake) for mistake in error.errors())) from None


def read_yaml(path: Path, name: str) -> Any:
    """The values of a YAML 1.2 file.

    Raises:
        UserError: if it cannot be read; the message starts with `name`.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{name}: not found in {path.parent}; run from the project's root") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{name}: not valid YAML: not UTF-8 text; save it with this encoding") from None
    except YAMLError as error:
        raise UserError(f"{name}: not valid YAML: {_yaml_problem(error)}") from None


def parse_yaml(text: str) -> Any:
    """The values in a YAML 1.2 text, with the parser that DVC uses.

    Raises:
        YAMLError: if it is not valid YAML, or a key stands twice.
    """
    try:
        return YAML(typ="safe").load(text)
    except (ValueError, RecursionError) as error:  # of a value, for example the date 2026-02-30
        raise YAMLError(str(error)) from None


def raw_sections(text: str) -> dict[str, dict[str, Any]]:
    """A params.yaml of any version of this project, unchecked; empty if the text is something else."""
    try:
        values = parse_yaml(text)
    except YAMLError:
        return {}
    return {name: keys for name, keys in values.items() if isinstance(keys, dict)} if isinstance(values, dict) else {}


def flatten(sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """{"train": {"epochs": 1}} becomes {"train.epochs": 1}."""
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


def with_overrides(params: Params, overrides: dict[str, Any]) -> Params:
    """Params with other values, named as `dvc exp run -S` names them.

    Raises:
        ValueError: if a value is not allowed.
    """
    sections = params.model_dump(by_alias=True)
    for name, value in overrides.items():
        section, key = name.split(".")
        sections[section][key] = value
    return Params.model_validate(sections)


def describe_mistake(error: ValueError) -> str:
    """The first mistake that `with_overrides` found, as one line."""
    return _error_line("params.yaml", error.errors()[0]) if isinstance(error, ValidationError) else str(error)


class _Representer(RoundTripRepresenter):
    """Writes null as null, not as an empty value."""


_Representer.add_representer(type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "null"))


def replace_values(text: str, overrides: dict[str, Any]) -> str:
    """The text of a params.yaml with other values; comments stay, and so does the layout, but for indented lists."""
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 1_000_000
    document = yaml.load(text)
    for name, value in overrides.items():
        section, key = name.split(".")
        _assign(document[section], key, value)
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def _assign(section: CommentedMap, key: str, value: Any) -> None:
    """Set a value; a list keeps the style (one line or one line per value) of the list it replaces."""
    previous = section.get(key)
    if isinstance(value, list):
        value = CommentedSeq(value)
        if not isinstance(previous, CommentedSeq) or previous.fa.flow_style() is not False:
            value.fa.set_flow_style()
    section[key] = value


def params_summary(params: Params) -> str:
    """A few words that distinguish one training from another."""
    model, train = params.model, params.train
    layers = "+".join(f"{blocks}x{channels}" for blocks, channels in zip(model.blocks, model.channels, strict=True))
    return f"seed {train.seed}, {train.epochs} epochs, {layers}"


def _yaml_problem(error: YAMLError) -> str:
    """Line, column and problem, without the advice of ruamel, which is for programmers."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {' '.join(str(error.problem).split())}"
    return " ".join(str(error).split())


def _error_line(file: str, mistake: Any) -> str:
    key = ".".join(str(part) for part in mistake["loc"])
    problem = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "missing":
        return f"{file}: {key} is missing"
    if mistake["type"] == "extra_forbidden":
        return f"{file}: {key} is unknown; remove it or correct the spelling"
    if mistake["type"] == "value_error":
        return f"{file}: {key + '.' if key else ''}{problem}"
    return f"{file}: {key} is {mistake['input']!r}: {problem[0].lower()}{problem[1:]}"
