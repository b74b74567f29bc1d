"""A search on Optuna: what to try next and what came of it, in a study that workers on many machines may share.

Whatever changes the study's trials happens under a lock (`Study.alone`), as sqlite locks no rows: so no trial is given
to two workers, none counted twice, and what a kill left half done is mended by whoever asks next.
"""

import os
import platform
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from cifar_resnet.errors import UserError
from cifar_resnet.params.file import Params
from cifar_resnet.search.space import (
    PRUNERS,
    BudgetSampler,
    distributions,
    model_size,
    study_identity,
    to_overrides,
    trial_params,
)

ATTEMPTS = 3  # a trial that so many workers died of is given up: it may need more memory than there is
IDENTITY_KEY = "made_with"
REMOTE: dict[str, Any] = {"connect_args": {"connect_timeout": 10}}


class TakenOverError(Exception):
    """The trial was given to another worker, as this one was silent for too long."""


@dataclass(frozen=True)
class Trial:
    """A configuration to train: `values` are params.yaml's with the `changes` drawn and the search's budget."""

    handle: optuna.Trial
    changes: dict[str, Any]
    values: Params
    parameters: int
    multiply_adds: int

    @property
    def number(self) -> int:
        return self.handle.number


@dataclass(frozen=True)
class Result:
    """What a trial came to: finished, pruned, failed, killed (another has its configuration), running or waiting.

    `accuracy` is that of the last epoch that was measured, None before the first.
    """

    number: int
    outcome: str
    accuracy: float | None
    epochs: int
    parameters: int | None
    multiply_adds: int | None
    seconds: float | None
    changes: dict[str, Any]
    reason: str
    retry_of: int | None
    mlflow_run: str | None

    @property
    def counts(self) -> bool:
        """Towards the number of trials to make."""
        return self.outcome != "killed"

    @property
    def ended(self) -> bool:
        return self.outcome in {"finished", "pruned", "failed"}


class Study:
    """The trials of all workers, in the database that search.storage names.

    Args:
        root: the project's; a relative path of sqlite starts there.
        values: params.yaml.
        data: the digest of the images to train on; None only reads a study that exists.

    Raises:
        UserError: if no network is within the budget, the database cannot be used, or its study of that name is
            missing (if only read) or was made with another space or budget for a trial.
    """

    def __init__(self, root: Path, values: Params, data: str | None = None) -> None:
        self.values = values
        self.search = values.search
        self.space = distributions(values)
        self.sampler = BudgetSampler(values)
        self.last_heartbeat = 0.0
        self.url = sqlalchemy.make_url(self.search.storage)
        self.local = self.url.drivername == "sqlite"
        if self.local:
            home = Path(os.environ.get("DVC_ROOT", root)).resolve()
            self.url = self.url.set(database=str(home / str(self.url.database)))
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        if data is not None:  # is any network within the budget?
            optuna.create_study(sampler=self.sampler).ask(self.space)
        elif self.local and not Path(str(self.url.database)).exists():
            raise self._missing()
        self.storage, self.study = self._opened(create=data is not None)
        if data is not None:
            self._check(study_identity(values, data))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """No other worker is in here, on however many machines; the lock of one that dies is free."""
        if self.local:
            with FileLock(f"{self.url.database}.lock"):
                yield
            return
        engine = sqlalchemy.create_engine(self.url, poolclass=sqlalchemy.NullPool, **REMOTE)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(hashtext('cifar-resnet search'))"))
            yield

    def _opened(self, *, create: bool) -> tuple[optuna.storages.RDBStorage, optuna.Study]:
        try:
            with self.lock():
                storage = self._storage()
                if create:
                    return storage, self._new(storage)
                return storage, optuna.load_study(study_name=self.search.study, storage=storage)
        except KeyError:
            raise self._missing() from None
        except Exception as error:
            shown = self.url.render_as_string(hide_password=True)
            said = " ".join(str(error.__cause__ or error).split()).replace(self.url.password or shown, "***")[:200]
            raise UserError(
                f"search.storage: {shown} cannot be used ({said}); start it, or name a database "
                "that the search has to itself"
            ) from None

    def _missing(self) -> UserError:
        shown = self.url.render_as_string(hide_password=True)
        return UserError(f"search.study: there is no {self.search.study} in {shown}; run `make search` first")

    def _storage(self) -> optuna.storages.RDBStorage:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # the heartbeat
            return optuna.storages.RDBStorage(
                self.url.render_as_string(hide_password=False),
                engine_kwargs={"connect_args": {"timeout": 60}} if self.local else REMOTE | {"pool_pre_ping": True},
                heartbeat_interval=max(1, self.search.heartbeat_timeout_seconds // 6),
                grace_period=self.search.heartbeat_timeout_seconds,
            )

    def _new(self, storage: optuna.storages.RDBStorage) -> optuna.Study:
        """The study of that name, made if it is the first worker's."""
        return optuna.create_study(
            storage=storage,
            study_name=self.search.study,
            sampler=self.sampler,
            pruner=PRUNERS[self.search.pruner],
            directions=["maximize", "minimize"] if self.search.sampler == "nsga2" else ["maximize"],
            load_if_exists=True,
        )

    def _check(self, wanted: dict[str, Any]) -> None:
        with self.lock():
            present = self.study.user_attrs.get(IDENTITY_KEY)
            if present is None:
                self.study.set_user_attr(IDENTITY_KEY, wanted)
                return
        differing = sorted(key for key in present | wanted if present.get(key) != wanted.get(key))
        if differing:
            raise UserError(
                f"search.study: {self.search.study} was made with another {', '.join(differing)}; give it another "
                "name, or put the values back"
            )

    def set_attribute(self, trial: Trial, key: str, value: Any) -> None:
        trial.handle.set_user_attr(key, value)

    @property
    def mlflow_run(self) -> str | None:
        """The search's run, once it is set."""
        found: str | None = self.study.user_attrs.get("mlflow_run")
        return found

    @mlflow_run.setter
    def mlflow_run(self, run_id: str) -> None:
        self.study.set_user_attr("mlflow_run", run_id)

    def ask(self, limit: int) -> Trial | None:
        """The next trial, this worker's alone; None if `limit` are made or under way."""
        with self.lock():
            self._requeue_stale_trials()
            results = self.results()
            waiting = any(each.outcome == "waiting" for each in results)
            if not waiting and sum(each.counts for each in results) >= limit:
                return None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the heartbeat works outside of optimize(), see beat
                handle = self.study.ask(self.space)
            self.storage.record_heartbeat(handle._trial_id)
            handle.set_user_attr("worker", f"{platform.node()}:{os.getpid()}")
        changes = to_overrides(self.values, handle.params)
        values = trial_params(self.values, changes)
        trial = Trial(handle, changes, values, *model_size(values.model))
        for key in ("changes", "parameters", "multiply_adds"):
            handle.set_user_attr(key, getattr(trial, key))
        return trial

    def _requeue_stale_trials(self) -> None:
        """Put the trials of workers that died back in line. One without a worker broke off between two lines of claim,
        as the lock is ours."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)
        trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == TrialState.RUNNING and "worker" not in trial.user_attrs:
                self.study.tell(trial.number, state=TrialState.FAIL)
        retried = {trial.user_attrs.get("retry_of") for trial in trials}
        for trial in self.study.get_trials(deepcopy=False):
            if _outcome(trial) == "killed" and trial.number not in retried:
                self.study.add_trial(retry_trial(trial, self.space))

    def heartbeat(self, trial: Trial) -> None:
        """Tell the others that this worker lives; to be called often.

        Raises:
            TakenOverError: if they do not believe it any more.
        """
        if time.monotonic() - self.last_heartbeat < self.search.heartbeat_timeout_seconds / 6:
            return
        self._check_running(trial)
        self.storage.record_heartbeat(trial.handle._trial_id)
        self.last_heartbeat = time.monotonic()

    def _check_running(self, trial: Trial) -> None:
        if self.storage.get_trial(trial.handle._trial_id).state != TrialState.RUNNING:
            raise TakenOverError

    def report(self, trial: Trial, epoch: int, accuracy: float) -> bool:
        """Keep what an epoch measured; whether to stop the trial here."""
        self._check_running(trial)
        trial.handle.set_user_attr("measured", [epoch, accuracy])
        if self.search.sampler == "nsga2":  # Optuna takes reports on one objective only
            return False
        trial.handle.report(accuracy, epoch)
        return epoch < self.search.epochs and trial.handle.should_prune()

    def tell(self, trial: Trial, outcome: str, *, seconds: float, reason: str = "") -> None:
        """Finished or pruned; failed, with the reason; or interrupted: then the trial is put back in line."""
        with self.lock():
            self._check_running(trial)
            handle = trial.handle
            handle.set_user_attr("seconds", round(seconds, 1))
            if outcome == "finished":
                values = [handle.user_attrs["measured"][1], getattr(trial, self.search.cost)]
                self.study.tell(handle, values[: len(self.study.directions)])
            elif outcome == "pruned":
                self.study.tell(handle, state=TrialState.PRUNED)
            else:
                handle.set_user_attr("reason" if outcome == "failed" else "interrupted", reason or True)
                self.study.tell(handle, state=TrialState.FAIL)
                self._requeue_stale_trials()

    def results(self) -> list[Result]:
        return [_result(trial) for trial in self.study.get_trials(deepcopy=False)]

    def importance(self) -> dict[str, float]:
        """Share of the accuracy's variance that each parameter explains; needs a few finished trials. Parameters of
        layers that some of them lack are left out: there, the values drawn for them mean nothing."""
        finished = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        present = len(self.values.model.channels)
        fewest = min(trial.params.get("model.layers", present) for trial in finished)
        layers = {name: name.rpartition(".")[2] for name in self.space}
        shared = [name for name, layer in layers.items() if not layer.isdecimal() or int(layer) < fewest]
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(
            self.study, evaluator=evaluator, params=shared, target=lambda trial: trial.values[0]
        )
        return dict(found)


def _outcome(trial: FrozenTrial) -> str:
    if trial.state != TrialState.FAIL:
        return {"COMPLETE": "finished"}.get(trial.state.name, trial.state.name.lower())
    died = "reason" not in trial.user_attrs and "interrupted" not in trial.user_attrs
    given_up = died and trial.user_attrs.get("attempt", 1) >= ATTEMPTS
    return "failed" if given_up or "reason" in trial.user_attrs else "killed"


def retry_trial(trial: FrozenTrial, space: dict[str, BaseDistribution]) -> FrozenTrial:
    """A trial in line with the configuration of one that broke off; a draw that broke off itself is drawn anew."""
    whole = set(trial.params) == set(space)
    attempt = trial.user_attrs.get("attempt", 1) + ("interrupted" not in trial.user_attrs)
    return optuna.create_trial(
        state=TrialState.WAITING,
        params=trial.params if whole else {},
        distributions=trial.distributions if whole else {},
        user_attrs={"retry_of": trial.number, "attempt": attempt},
        system_attrs={key: value for key, value in trial.system_attrs.items() if not key.startswith("completed_rung")},
    )


def _result(trial: FrozenTrial) -> Result:
    known, outcome = trial.user_attrs, _outcome(trial)
    epochs, accuracy = known.get("measured", (0, None))
    reason = known.get("reason", f"its worker died, {ATTEMPTS} times" if outcome == "failed" else "")
    return Result(
        number=trial.number,
        outcome=outcome,
        accuracy=accuracy,
        epochs=epochs,
        parameters=known.get("parameters"),
        multiply_adds=known.get("multiply_adds"),
        seconds=known.get("seconds"),
        changes=known.get("changes", {}),
        reason=reason,
        retry_of=known.get("retry_of"),
        mlflow_run=known.get("mlflow_run"),
    )
