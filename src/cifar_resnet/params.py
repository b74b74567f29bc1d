"""params.yaml as frozen, strict objects, one per section: values live in the file, this says what is allowed."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from cifar_resnet.errors import UserError

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
BatchSize = Annotated[int, Field(ge=2, le=50_000)]
PER_LAYER = ("channels", "blocks", "kernels", "skip_kernels")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class DownloadParams(Section):
    sources: Annotated[list[str], Field(min_length=1)]
    timeout_seconds: Rate


class PreprocessParams(Section):
    validation_per_class: Whole
    seed: Whole


class ModelParams(Section):
    stem: Literal["whitening", "convolution"]
    stem_channels: Count
    channels: Annotated[list[Count], Field(min_length=1)]
    blocks: list[Count]
    kernels: list[Count]
    skip_kernels: list[Count]
    downsample: Literal["pool", "stride"]
    activation: Literal["silu", "gelu", "relu"]
    pooling: Literal["max", "average"]
    pool: Count
    mirrored: bool
    max_parameters: Count

    @model_validator(mode="after")
    def _fits_together(self) -> "ModelParams":
        for key in ("blocks", "kernels", "skip_kernels"):
            values = getattr(self, key)
            if len(values) != len(self.channels):
                raise ValueError(f"{key} is {values}: as many values as channels ({len(self.channels)}) needed")
            if key != "blocks" and any(value % 2 == 0 for value in values):
                raise ValueError(f"{key} is {values}: only odd kernels keep the size")
        if self.stem == "whitening" and self.stem_channels != 24:
            raise ValueError(f"stem_channels is {self.stem_channels}: a whitening stem has exactly 24")
        if self.pool > self.resolution(32):
            raise ValueError(
                f"pool is {self.pool}: {len(self.channels)} layers shrink 32 pixels to {self.resolution(32)}, "
                "so take fewer layers or a smaller pool"
            )
        return self

    @model_validator(mode="after")
    def _symmetric(self) -> "ModelParams":
        if not self.mirrored:
            return self
        if self.stem != "whitening" or self.downsample != "pool":
            raise ValueError("mirrored is true: needs stem whitening and downsample pool, as others are not symmetric")
        if any(value % 2 for value in self.channels):
            raise ValueError(f"channels is {self.channels}: mirrored filters come in pairs, so only even numbers")
        if self.resolution(32) % self.pool:
            raise ValueError(
                f"pool is {self.pool}: mirrored needs a divisor of {self.resolution(32)}, the pixels a side before it"
            )
        return self

    def resolution(self, pixels: int) -> int:
        """Pixels a side of the last layer's output, for an input of `pixels` a side."""
        pixels -= self.stem == "whitening"
        for _ in self.channels[0 if self.downsample == "pool" else 1 :]:
            pixels = pixels // 2 if self.downsample == "pool" else (pixels + 1) // 2
        return pixels


class TrainParams(Section):
    seed: Whole
    epochs: Count
    batch_size: BatchSize
    low_resolution_epochs: Whole
    low_resolution: Annotated[int, Field(ge=8, le=32)]
    optimizer: Literal["muon", "sgd"]
    filter_lr: Rate
    bias_lr: Rate
    head_lr: Rate
    filter_momentum: Share
    momentum: Share
    weight_decay: Annotated[float, Field(ge=0, lt=1)]
    warmup_epochs: Annotated[float, Field(ge=0)]
    sam_radius: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    label_smoothing: Share
    average_decay: Share
    flip: Literal["none", "random", "alternating"]
    translation: Annotated[int, Field(ge=0, le=16)]
    trivial_augment: Annotated[float, Field(ge=0, le=1)]
    cutout: Annotated[int, Field(ge=0, le=32)]
    precision: Literal["auto", "float32", "bfloat16"]
    processes: Count
    shared_normalisation: bool

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainParams":
        if self.batch_size % self.processes:
            raise ValueError(
                f"processes is {self.processes}: batch_size ({self.batch_size}) must be a multiple, as each takes an "
                "equal share"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}: must be below epochs ({self.epochs})")
        return self


class CheckpointParams(Section):
    epochs: Count
    minutes: Rate


class TrackingParams(Section):
    enabled: bool
    system_metrics: bool


class EvaluateParams(Section):
    batch_size: BatchSize
    corruptions: bool


class RegisterParams(Section):
    model_name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    min_accuracy: Share
    max_parameters: Count
    min_gain: Share
    significance: Annotated[float, Field(gt=0, le=1)]


class PredictParams(Section):
    input: Annotated[str, Field(min_length=1)]
    batch_size: BatchSize
    strict: bool


class Range(Section):
    """Numbers from `low` to `high`, both included; only whole ones if both are whole."""

    low: Annotated[int | float, Field(allow_inf_nan=False)]
    high: Annotated[int | float, Field(allow_inf_nan=False)]
    scale: Literal["linear", "log"]


class SearchParams(Section):
    study: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    storage: Annotated[str, Field(pattern=r"^(sqlite:///|postgresql(\+\w+)?://).+")]
    sampler: Literal["random", "tpe", "nsga2"]
    cost: Literal["parameters", "multiply_adds"]
    pruner: Literal["none", "median", "halving"]
    seed: Whole
    trials: Count
    minutes: Rate
    silence_seconds: Annotated[int, Field(ge=2)]
    epochs: Count
    low_resolution_epochs: Whole
    train_per_class: Count
    validation_per_class: Count
    max_multiply_adds: Count | None
    space: Annotated[dict[str, list[Any] | Range], Field(min_length=1)]

    @field_validator("space", mode="before")
    @classmethod
    def _is_a_space(cls, found: Any) -> Any:
        if not isinstance(found, dict):
            return found
        return {name: _allowed(name, value) for name, value in found.items()}

    @model_validator(mode="after")
    def _fits_together(self) -> "SearchParams":
        if self.sampler == "nsga2" and self.pruner != "none":
            raise ValueError(f"pruner is {self.pruner}: nsga2 weighs accuracy against cost, so it must be none")
        return self


class Params(Section):
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
    def _fits_together(self) -> "Params":
        if self.train.low_resolution_epochs and self.model.resolution(self.train.low_resolution) < 1:
            raise ValueError(
                f"train.low_resolution is {self.train.low_resolution}: the {len(self.model.channels)} layers of the "
                "model shrink it below 1x1"
            )
        cells = self.model.resolution(32) // self.model.pool
        low = self.model.resolution(self.train.low_resolution)
        if self.train.low_resolution_epochs and low // min(self.model.pool, low) != cells:
            raise ValueError(
                f"model.pool is {self.model.pool}: with train.low_resolution_epochs it must leave as much at "
                f"{self.train.low_resolution} pixels as at 32; take {self.model.resolution(32)}"
            )
        return self


def load(path: Path) -> Params:
    """Read and check params.yaml.

    Raises:
        UserError: one line per mistake with the key, its value and what is allowed.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{path.name}: not found in {path.parent}; run from the project's root") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(_line(path.name, mistake) for mistake in error.errors())) from None


def sections(text: str) -> dict[str, dict[str, Any]]:
    """A params.yaml of whatever age, unchecked; empty if it is none."""
    values = yaml.safe_load(text)
    return {name: keys for name, keys in values.items() if isinstance(keys, dict)} if isinstance(values, dict) else {}


def flat(values: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """{"train": {"epochs": 1}} becomes {"train.epochs": 1}."""
    return {f"{section}.{key}": value for section, keys in values.items() for key, value in keys.items()}


def changed(values: Params, changes: dict[str, Any]) -> Params:
    """With other values, by their full names, as `dvc exp run -S` takes them.

    Raises:
        ValueError: if they are not allowed.
    """
    sections = values.model_dump(by_alias=True)
    for name, value in changes.items():
        section, key = name.split(".")
        sections[section][key] = value
    return Params.model_validate(sections)


def summary(values: Params) -> str:
    """What tells one training from another, in a few words."""
    model, train = values.model, values.train
    layers = "+".join(f"{blocks}x{channels}" for blocks, channels in zip(model.blocks, model.channels, strict=True))
    return f"seed {train.seed}, {train.epochs} epochs, {layers}"


def _searchable() -> dict[str, TypeAdapter[Any]]:
    """What search.space may name, each with the type of a value; the rest is a trial's budget or changes no result."""
    kinds: dict[str, Any] = {"model.layers": Count}
    kinds |= {f"model.{name}": field.rebuild_annotation() for name, field in ModelParams.model_fields.items()}
    kinds |= {f"model.{name}": Count for name in PER_LAYER}
    kinds |= {f"train.{name}": field.rebuild_annotation() for name, field in TrainParams.model_fields.items()}
    fixed = {"model.max_parameters"} | {
        f"train.{name}"
        for name in ("seed", "epochs", "low_resolution_epochs", "low_resolution", "precision", "processes",
                     "shared_normalisation")
    }  # fmt: skip
    return {name: TypeAdapter(kind) for name, kind in kinds.items() if name not in fixed}


def _allowed(name: str, value: Any) -> list[Any] | Range:
    """What a parameter of the search space may be."""
    kinds, found = _searchable(), _choices(name, value)
    if name not in kinds:
        raise ValueError(f"{name} is unknown; allowed are {', '.join(kinds)}")
    values = [found.low, found.high] if isinstance(found, Range) else found
    for value in values:
        try:
            kinds[name].validate_python(value, strict=True)
        except ValidationError as error:
            raise ValueError(f"{name} holds {value!r}: {_lower(error.errors()[0]['msg'])}") from None
    if not values:
        raise ValueError(f"{name} is []: at least one choice needed")
    if isinstance(found, Range) and not (found.low < found.high and (found.scale == "linear" or found.low > 0)):
        raise ValueError(
            f"{name} is from {found.low} to {found.high}: low must be below high, and above 0 on a log scale"
        )
    return found


def _choices(name: str, found: Any) -> list[Any] | Range:
    if isinstance(found, list | Range):
        return found
    try:
        return Range.model_validate(found)
    except ValidationError:
        raise ValueError(
            f"{name} is {found!r}: a list of choices or {{low: 1, high: 2, scale: linear}} (or log) needed"
        ) from None


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _line(file: str, mistake: Any) -> str:
    key = ".".join(str(part) for part in mistake["loc"])
    problem = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "missing":
        return f"{file}: {key} is missing"
    if mistake["type"] == "extra_forbidden":
        return f"{file}: {key} is unknown; remove it or mend the spelling"
    if mistake["type"] == "value_error":
        return f"{file}: {key + '.' if key else ''}{problem}"
    return f"{file}: {key} is {mistake['input']!r}: {_lower(problem)}"
