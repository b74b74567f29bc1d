"""The search space: one of Optuna's samplers chooses configurations from search.space, all within the budget."""

from collections import Counter
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from cifar_resnet.errors import UserError
from cifar_resnet.models import resnet
from cifar_resnet.params.file import Params, describe_mistake, flatten, with_overrides
from cifar_resnet.params.schema import PER_LAYER, ModelParams
from cifar_resnet.params.search_schema import Range

MAX_SAMPLES = 1_000  # attempts to find a network within the budget
POPULATION = 12  # of NSGA-II; the trials of the first generation are random
PRUNERS = {
    "none": optuna.pruners.NopPruner(),
    "median": optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
    "halving": optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
}


class BudgetSampler(BaseSampler):
    """One of Optuna's samplers; configurations beyond the budget are sampled again and never become trials.

    The first trial has the values of params.yaml if they are in the space and within the budget. A later sample
    depends on the seed, the number of the trial and, except for random, on the earlier trials.
    """

    def __init__(self, params: Params, num_classes: int) -> None:
        self.params, self.num_classes = params, num_classes
        self.space = distributions(params)

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:  # noqa: ARG002
        return self.space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """
        Raises:
            UserError: if no sample is valid and within the budget.
        """
        search = self.params.search
        seed = int(np.random.SeedSequence([search.seed, trial.number]).generate_state(1)[0])
        sampler, random_sampler = _create_sampler(search.sampler, seed), RandomSampler(seed)
        variable = {name: distribution for name, distribution in search_space.items() if not distribution.single()}

        def draw() -> dict[str, Any]:
            relative = sampler.sample_relative(study, trial, variable)
            return {
                name: relative[name]
                if name in relative
                else random_sampler.sample_independent(study, trial, name, distribution)
                for name, distribution in search_space.items()
            }

        current = current_sample(self.params) if trial.number == 0 else None
        first = [] if current is None else [current]
        num_valid, problems = 0, Counter[str]()
        for sample in chain(first, (draw() for _ in range(MAX_SAMPLES))):
            try:
                if within_budget(self.params, sample, self.num_classes):
                    return sample
                num_valid += 1
            except ValueError as error:
                problems[describe_mistake(error)] += 1
        if num_valid == 0:
            ((problem, _),) = problems.most_common(1)
            raise UserError(f"search: none of {MAX_SAMPLES:,} samples is valid, most often because of {problem}")
        limit = "null" if search.max_multiply_adds is None else f"{search.max_multiply_adds:,}"
        raise UserError(
            f"search.space: none of {MAX_SAMPLES:,} samples is within model.max_parameters "
            f"({self.params.model.max_parameters:,}) and search.max_multiply_adds ({limit}); "
            "raise them or widen the space"
        )

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample a parameter that has a single choice; `sample_relative` samples all others."""
        return RandomSampler(0).sample_independent(study, trial, param_name, param_distribution)


def distributions(params: Params) -> dict[str, BaseDistribution]:
    """Optuna's search space; a list with a value per layer becomes `model.channels.0`, `model.channels.1` and so on."""
    space = params.search.space
    layers = space.get("model.layers", [len(params.model.channels)])
    max_layers = int(layers.high) if isinstance(layers, Range) else max(layers)
    by_name = {}
    for name, choices in space.items():
        is_per_layer = name.removeprefix("model.") in PER_LAYER
        for key in [f"{name}.{layer}" for layer in range(max_layers)] if is_per_layer else [name]:
            by_name[key] = _create_distribution(choices)
    return by_name


def current_sample(params: Params) -> dict[str, Any] | None:
    """The values of params.yaml as a sample; None if one of them is not in the search space."""
    values = flatten(params.model_dump(include={"model", "train"})) | {"model.layers": len(params.model.channels)}
    sample = {}
    for key, distribution in distributions(params).items():
        name, _, layer = key.rpartition(".")
        value = values[name][min(int(layer), len(values[name]) - 1)] if layer.isdecimal() else values[key]
        if not _contains(distribution, value):
            return None
        sample[key] = value
    return sample


def to_overrides(params: Params, sample: dict[str, Any]) -> dict[str, Any]:
    """A sample as overrides for `dvc exp run -S`.

    A list that is not searched is cut to the number of layers, or extended with its last value.
    """
    layers = sample.get("model.layers", len(params.model.channels))
    overrides: dict[str, Any] = {}
    for name in PER_LAYER:
        default = getattr(params.model, name)
        is_searched = f"model.{name}.0" in sample
        values = [
            sample[f"model.{name}.{layer}"] if is_searched else default[min(layer, len(default) - 1)]
            for layer in range(layers)
        ]
        if is_searched or values != default:
            overrides[f"model.{name}"] = values
    for name, value in sample.items():
        if name != "model.layers" and name.count(".") == 1:
            overrides[name] = float(f"{value:.4g}") if isinstance(value, float) else value
    return overrides


def trial_params(params: Params, overrides: dict[str, Any]) -> Params:
    """The params that a trial trains with.

    Raises:
        ValueError: if a value is not allowed.
    """
    budget = {
        "train.epochs": params.search.epochs,
        "train.low_resolution_share": params.search.low_resolution_share,
        "train.processes": 1,
    }
    return with_overrides(params, overrides | budget)


def model_size(model: ModelParams, num_classes: int) -> tuple[int, int]:
    """(parameters, multiply-adds per image) of a network, which is built on the meta device and needs no memory."""
    return _model_size(model.model_dump_json(), num_classes)


@cache
def _model_size(model: str, num_classes: int) -> tuple[int, int]:
    with torch.device("meta"):
        network = resnet.ResNet(ModelParams.model_validate_json(model), [0.5] * 3, [0.25] * 3, num_classes=num_classes)
    return resnet.num_parameters(network), resnet.multiply_adds(network)


def within_budget(params: Params, sample: dict[str, Any], num_classes: int) -> bool:
    """Whether the sampled network is within the budget.

    Raises:
        ValueError: if the values are not allowed as a trial or trained in full.
    """
    overrides = to_overrides(params, sample)
    with_overrides(params, overrides)
    model = trial_params(params, overrides).model
    parameters, multiply_adds = model_size(model, num_classes)
    limit = params.search.max_multiply_adds
    return parameters <= params.model.max_parameters and (limit is None or multiply_adds <= limit)


def study_identity(params: Params, data: str) -> dict[str, Any]:
    """The values that all trials of a study share, so that their accuracies are comparable; `data` is the images' hash.

    Not part of it: the searched parameters, and the fields of `search` that may change while a study continues.
    """
    identity = flatten(params.model_dump(mode="json", include={"model", "train"}))
    free = {"study", "storage", "sampler", "cost", "pruner", "trials", "minutes", "heartbeat_timeout_seconds"}
    identity["search.sampler"] = (
        f"nsga2 of {params.search.cost}" if params.search.sampler == "nsga2" else "random or tpe"
    )
    identity |= flatten({"search": params.search.model_dump(mode="json", exclude=free)})
    searched = {*params.search.space, "train.epochs", "train.low_resolution_share", "train.processes"}
    return {key: value for key, value in identity.items() if key not in searched} | {"training images": data}


def _create_sampler(name: str, seed: int) -> BaseSampler:
    if name == "tpe":
        return TPESampler(seed=seed)
    return NSGAIISampler(population_size=POPULATION, seed=seed) if name == "nsga2" else RandomSampler(seed)


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    on_step = not distribution.step or (value - distribution.low) % distribution.step == 0
    return bool(on_step and distribution.low <= value <= distribution.high)


def _create_distribution(choices: list[Any] | Range) -> BaseDistribution:
    """Integers at equal steps keep their order; other choices are categories."""
    if isinstance(choices, Range):
        log = choices.scale == "log"
        if isinstance(choices.low, int) and isinstance(choices.high, int):
            return IntDistribution(choices.low, choices.high, log=log)
        return FloatDistribution(choices.low, choices.high, log=log)
    steps = set(np.diff(choices)) if all(type(choice) is int for choice in choices) else set()
    if len(steps) == 1 and min(steps) > 0:
        return IntDistribution(choices[0], choices[-1], step=int(min(steps)))
    return CategoricalDistribution(choices)
