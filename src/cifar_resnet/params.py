"""params.yaml as frozen, strict objects, one per section: values live in the file, this says what is allowed."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cifar_resnet.errors import UserError

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
BatchSize = Annotated[int, Field(ge=2, le=50_000)]


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
    label_smoothing: Share
    average_decay: Share
    flip: Literal["none", "random", "alternating"]
    translation: Annotated[int, Field(ge=0, le=16)]
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


def summary(values: Params) -> str:
    """What tells one training from another, in a few words."""
    model, train = values.model, values.train
    layers = "+".join(f"{blocks}x{channels}" for blocks, channels in zip(model.blocks, model.channels, strict=True))
    return f"seed {train.seed}, {train.epochs} epochs, {layers}"


def _line(file: str, mistake: Any) -> str:
    key = ".".join(str(part) for part in mistake["loc"])
    problem = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] == "missing":
        return f"{file}: {key} is missing"
    if mistake["type"] == "extra_forbidden":
        return f"{file}: {key} is unknown; remove it or mend the spelling"
    if mistake["type"] == "value_error":
        return f"{file}: {key + '.' if key else ''}{problem}"
    return f"{file}: {key} is {mistake['input']!r}: {problem[0].lower()}{problem[1:]}"
