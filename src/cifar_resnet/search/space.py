"""What a search may try: draws from search.space by one of Optuna's samplers, none of them beyond the budget."""

from functools import cache
from typing import Any

import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from cifar_resnet.errors import UserError
from cifar_resnet.models import resnet
from cifar_resnet.params.file import Params, with_overrides
from cifar_resnet.params.search_section import Range
from cifar_resnet.params.sections import PER_LAYER, ModelParams

DRAWS = 1_000  # tries to find a network within the budget
POPULATION = 12  # of NSGA-II: the first so many trials are random
PRUNERS = {
    "none": optuna.pruners.NopPruner(),
    "median": optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
    "halving": optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
}


class BudgetSampler(BaseSampler):
    """One of Optuna's samplers, asked until the network is within the budget: no other draw becomes a trial.

    What is drawn depends on the seed, the trial's number and, but for random, the trials before.
    """

    def __init__(self, values: Params) -> None:
        self.values = values
        self.space = distributions(values)

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:  # noqa: ARG002
        return self.space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """
        Raises:
            UserError: if no network within the budget was found.
        """
        seed = int(np.random.SeedSequence([self.values.search.seed, trial.number]).generate_state(1)[0])
        chosen, fallback = _sampler(self.values.search.sampler, seed), RandomSampler(seed)
        variable = {name: each for name, each in search_space.items() if not each.single()}
        for _ in range(DRAWS):
            found = chosen.sample_relative(study, trial, variable)
            drawn = {
                name: found[name] if name in found else fallback.sample_independent(study, trial, name, each)
                for name, each in search_space.items()
            }
            if within_budget(self.values, drawn):
                return drawn
        most = self.values.search.max_multiply_adds
        raise UserError(
            f"none of {DRAWS:,} draws from search.space fits together within model.max_parameters "
            f"({self.values.model.max_parameters:,}) and search.max_multiply_adds ({f'{most:,}' if most else 'null'}); "
            "raise them or widen the space"
        )

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Of a parameter with one choice only; all others are drawn together."""
        return RandomSampler(0).sample_independent(study, trial, param_name, param_distribution)


def distributions(values: Params) -> dict[str, BaseDistribution]:
    """What Optuna draws: `model.channels.0` and so on for each layer that there may be, all other names as they are."""
    space = values.search.space
    layers = space.get("model.layers", [len(values.model.channels)])
    most = int(layers.high) if isinstance(layers, Range) else max(layers)
    found = {}
    for name, allowed in space.items():
        several = name.removeprefix("model.") in PER_LAYER
        for key in [f"{name}.{layer}" for layer in range(most)] if several else [name]:
            found[key] = _distribution(allowed)
    return found


def to_overrides(values: Params, drawn: dict[str, Any]) -> dict[str, Any]:
    """What was drawn, as `dvc exp run -S` takes it; a list not searched is cut or goes on with its last value."""
    layers = drawn.get("model.layers", len(values.model.channels))
    found: dict[str, Any] = {}
    for name in PER_LAYER:
        present = getattr(values.model, name)
        searched = f"model.{name}.0" in drawn
        chosen = [
            drawn[f"model.{name}.{layer}"] if searched else present[min(layer, len(present) - 1)]
            for layer in range(layers)
        ]
        if searched or chosen != present:
            found[f"model.{name}"] = chosen
    for name, value in drawn.items():
        if name != "model.layers" and name.count(".") == 1:
            found[name] = float(f"{value:.4g}") if isinstance(value, float) else value
    return found


def trial_params(values: Params, changes: dict[str, Any]) -> Params:
    """The params that a trial trains with.

    Raises:
        ValueError: if they are not allowed.
    """
    budget = {
        "train.epochs": values.search.epochs,
        "train.low_resolution_epochs": values.search.low_resolution_epochs,
        "train.processes": 1,
    }
    return with_overrides(values, changes | budget)


def model_size(model: ModelParams) -> tuple[int, int]:
    """(parameters, multiply-adds for one image), counted without memory for either."""
    return _model_size(model.model_dump_json())


@cache
def _model_size(model: str) -> tuple[int, int]:
    with torch.device("meta"):
        network = resnet.ResNet(ModelParams.model_validate_json(model), [0.5] * 3, [0.25] * 3)
    return resnet.num_parameters(network), resnet.multiply_adds(network)


def within_budget(values: Params, drawn: dict[str, Any]) -> bool:
    """Whether a network is within the budget, and may be trained as a trial and in full."""
    try:
        with_overrides(values, to_overrides(values, drawn))
        wanted = trial_params(values, to_overrides(values, drawn))
    except ValueError:
        return False
    parameters, multiply_adds = model_size(wanted.model)
    most = values.search.max_multiply_adds
    return parameters <= values.model.max_parameters and (most is None or multiply_adds <= most)


def study_identity(values: Params, data: str) -> dict[str, Any]:
    """What the trials of a study must have in common to be compared."""
    sections = values.model_dump(mode="json", include={"model", "train"})
    found = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
    free = {"study", "storage", "sampler", "cost", "pruner", "seed", "trials", "minutes", "heartbeat_timeout_seconds"}
    found["search.sampler"] = f"nsga2 of {values.search.cost}" if values.search.sampler == "nsga2" else "random or tpe"
    found |= {f"search.{key}": value for key, value in values.search.model_dump(mode="json", exclude=free).items()}
    searched = {*values.search.space, "train.epochs", "train.low_resolution_epochs", "train.processes"}
    return {key: value for key, value in found.items() if key not in searched} | {"training images": data}


def _sampler(name: str, seed: int) -> BaseSampler:
    if name == "tpe":
        return TPESampler(seed=seed)
    return NSGAIISampler(population_size=POPULATION, seed=seed) if name == "nsga2" else RandomSampler(seed)


def _distribution(allowed: list[Any] | Range) -> BaseDistribution:
    """Whole numbers at equal steps keep their order; other choices have none."""
    if isinstance(allowed, Range):
        log = allowed.scale == "log"
        if isinstance(allowed.low, int) and isinstance(allowed.high, int):
            return IntDistribution(allowed.low, allowed.high, log=log)
        return FloatDistribution(allowed.low, allowed.high, log=log)
    steps = set(np.diff(allowed)) if all(type(each) is int for each in allowed) else set()
    if len(steps) == 1 and min(steps) > 0:
        return IntDistribution(allowed[0], allowed[-1], step=int(min(steps)))
    return CategoricalDistribution(allowed)
