"""A trial of the search: while a worker trains it (SearchTrial) and as the study stores it (TrialResult)."""

from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from cifar_resnet.params.file import Params

RUN_STATUS = {"finished": "FINISHED", "pruned": "FINISHED", "failed": "FAILED", "killed": "KILLED"}  # in MLflow
MAX_ATTEMPTS = 3  # then the trial fails: it may need more memory than the machines have


@dataclass(frozen=True)
class SearchTrial:
    """A configuration to train: `params` are params.yaml with the `overrides` and the search's budget for a trial."""

    optuna_trial: optuna.Trial
    overrides: dict[str, Any]
    params: Params
    parameters: int
    multiply_adds: int

    @property
    def number(self) -> int:
        return self.optuna_trial.number


@dataclass(frozen=True)
class TrialResult:
    """State and metrics of a trial.

    `outcome` is finished, pruned, failed, killed (a retry has its configuration), running or waiting. `accuracy` is the
    validation accuracy of the last of `epochs`, None before the first.
    """

    number: int
    outcome: str
    accuracy: float | None
    epochs: int
    parameters: int | None
    multiply_adds: int | None
    seconds: float | None
    overrides: dict[str, Any]
    reason: str
    retry_of: int | None
    mlflow_run: str | None

    @property
    def counts_towards_limit(self) -> bool:
        return self.outcome != "killed"

    @property
    def ended(self) -> bool:
        return self.outcome in {"finished", "pruned", "failed"}


def trial_outcome(trial: FrozenTrial) -> str:
    if trial.state != TrialState.FAIL:
        return {"COMPLETE": "finished"}.get(trial.state.name, trial.state.name.lower())
    died = "reason" not in trial.user_attrs and "interrupted" not in trial.user_attrs
    attempts_used = died and trial.user_attrs.get("attempt", 1) >= MAX_ATTEMPTS
    return "failed" if attempts_used or "reason" in trial.user_attrs else "killed"


def trial_result(trial: FrozenTrial) -> TrialResult:
    attributes, outcome = trial.user_attrs, trial_outcome(trial)
    epochs, accuracy = attributes.get("measured", (0, None))
    reason = attributes.get("reason", f"its worker died {MAX_ATTEMPTS} times" if outcome == "failed" else "")
    return TrialResult(
        number=trial.number,
        outcome=outcome,
        accuracy=accuracy,
        epochs=epochs,
        parameters=attributes.get("parameters"),
        multiply_adds=attributes.get("multiply_adds"),
        seconds=attributes.get("seconds"),
        overrides=attributes.get("changes", {}),
        reason=reason,
        retry_of=attributes.get("retry_of"),
        mlflow_run=attributes.get("mlflow_run"),
    )


def retry_trial(trial: FrozenTrial, space: dict[str, BaseDistribution]) -> FrozenTrial:
    """A waiting trial with the configuration of a killed one; if the kill came during sampling, it is sampled again."""
    is_sampled = set(trial.params) == set(space)
    attempt = trial.user_attrs.get("attempt", 1) + ("interrupted" not in trial.user_attrs)
    return optuna.create_trial(
        state=TrialState.WAITING,
        params=trial.params if is_sampled else {},
        distributions=trial.distributions if is_sampled else {},
        user_attrs={"retry_of": trial.number, "attempt": attempt},
        system_attrs={key: value for key, value in trial.system_attrs.items() if not key.startswith("completed_rung")},
    )
