"""Section `search` of params.yaml, with the check of its search space."""

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from cifar_resnet.params.schema import PER_LAYER, Fraction, ModelParams, Name, Section, Seed, TrainParams

# The same for all trials, the budget of a trial, or without influence on the result.
NOT_SEARCHABLE = {
    "model.max_parameters",
    *(f"train.{name}" for name in ("seed", "init", "epochs", "low_resolution_share", "low_resolution")),
    *(f"train.{name}" for name in ("device", "precision", "processes", "sync_batch_norm")),
}


class Range(Section):
    """Numbers from `low` to `high`, both included; integers if both are integers."""

    low: int | float = Field(description="Smallest value.")
    high: int | float = Field(description="Largest value.")
    scale: Literal["linear", "log"] = Field(description="Whether values are drawn evenly or evenly in their logarithm.")


class SearchParams(Section):
    """The search for a better network (`make search`); no stage reads this section."""

    study: Name = Field(description="Name of the study; another space or trial budget needs another name.")
    storage: Annotated[str, Field(pattern=r"^(sqlite:///|postgresql(\+\w+)?://).+")] = Field(
        description="Database of the study: sqlite:///file, or postgresql+psycopg2://user@host/database for several "
        "machines (not MLflow's database; the password belongs in PGPASSWORD)."
    )
    sampler: Literal["random", "tpe", "nsga2"] = Field(
        description="Optuna's sampler: random, tpe (near good trials) or nsga2 (accuracy against cost, no pruner)."
    )
    cost: Literal["parameters", "multiply_adds"] = Field(
        description="What nsga2 minimizes while it maximizes the accuracy."
    )
    pruner: Literal["none", "median", "halving"] = Field(
        description="Which trials are stopped early: none, those below the median so far, or half of them repeatedly."
    )
    seed: Seed = Field(description="Random seed of the sampler and of the images.")
    trials: PositiveInt = Field(description="Number of trials, over all workers and restarts.")
    minutes: PositiveFloat = Field(description="Minutes after which no trial starts.")
    heartbeat_timeout_seconds: int = Field(
        ge=2, description="Seconds without a heartbeat after which a worker's trial is given to another worker."
    )
    epochs: PositiveInt = Field(description="Epochs of a trial.")
    low_resolution_share: Fraction = Field(description="As train.low_resolution_share, of a trial.")
    train_per_class: PositiveInt = Field(description="Training images of each class that a trial trains on.")
    validation_per_class: PositiveInt = Field(
        description="Other training images of each class that a trial is measured on."
    )
    max_multiply_adds: PositiveInt | None = Field(
        description="Largest number of multiply-adds per image; null sets no limit. model.max_parameters holds as well."
    )
    space: dict[str, list[Any] | Range] = Field(
        min_length=1,
        description="Values to try: key of params.yaml -> list of choices or {low, high, scale}. model.layers is the "
        "number of residual layers; keys that are missing keep their value.",
    )

    @field_validator("space", mode="before")
    @classmethod
    def _check_space(cls, space: Any) -> Any:
        if not isinstance(space, dict):
            return space
        return {name: _check_choices(name, choices) for name, choices in space.items()}

    @model_validator(mode="after")
    def _check_pruner(self) -> "SearchParams":
        if self.sampler == "nsga2" and self.pruner != "none":
            raise ValueError(f"pruner is {self.pruner}: nsga2 weighs accuracy against cost, so it must be none")
        return self


def searchable_types() -> dict[str, TypeAdapter[Any]]:
    """What search.space may name, each with the type of a value."""
    types: dict[str, Any] = {"model.layers": PositiveInt}
    types |= {f"model.{name}": field.rebuild_annotation() for name, field in ModelParams.model_fields.items()}
    types |= {f"model.{name}": get_args(ModelParams.model_fields[name].annotation)[0] for name in PER_LAYER}
    types |= {f"train.{name}": field.rebuild_annotation() for name, field in TrainParams.model_fields.items()}
    return {name: TypeAdapter(kind) for name, kind in types.items() if name not in NOT_SEARCHABLE}


def _check_choices(name: str, value: Any) -> list[Any] | Range:
    """
    Raises:
        ValueError: if the key cannot be searched or a value is not allowed for it.
    """
    types, choices = searchable_types(), _parse_choices(name, value)
    if name not in types:
        raise ValueError(f"{name} is unknown; allowed are {', '.join(types)}")
    for choice in [choices.low, choices.high] if isinstance(choices, Range) else choices:
        try:
            types[name].validate_python(choice, strict=True)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise ValueError(f"{name} holds {choice!r}: {message[0].lower()}{message[1:]}") from None
    if isinstance(choices, Range):
        if not (choices.low < choices.high and (choices.scale == "linear" or choices.low > 0)):
            raise ValueError(
                f"{name} is from {choices.low} to {choices.high}: low must be below high, and above 0 on a log scale"
            )
    elif not choices:
        raise ValueError(f"{name} is []: at least one choice needed")
    return choices


def _parse_choices(name: str, value: Any) -> list[Any] | Range:
    if isinstance(value, list | Range):
        return value
    try:
        return Range.model_validate(value)
    except ValidationError:
        raise ValueError(
            f"{name} is {value!r}: a list of choices or {{low: 1, high: 2, scale: linear}} (or log) needed"
        ) from None
