"""The Optuna study of a search, which workers on many machines can share.

Every change of the study's trials holds a lock (`Study.lock`), because SQLite does not lock rows. So no trial is given
to two workers or counted twice. The next worker that asks for a trial repairs what a killed worker left incomplete.
"""

import os
import platform
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

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
from cifar_resnet.search.trial import SearchTrial, TrialResult, retry_trial, trial_outcome, trial_result
from cifar_resnet.tracking.location import DRIVER_ADVICE, database_url, display_uri, table_names, without_secrets

IDENTITY_KEY = "made_with"


class TakenOverError(Exception):
    """The trial was given to another worker, because this worker sent no heartbeat for too long."""


class Study:
    """The trials of all workers, in the database that search.storage names.

    Args:
        root: the project's folder; a relative path of SQLite starts there.
        params: all of params.yaml.
        data: hash of the training images and number of their classes; None opens an existing study to read it.

    Raises:
        UserError: if no network is within the budget, if the database cannot be used or is another program's, or if
            the study is missing (with `data` None), foreign, or was created with another space or budget for a trial.
    """

    def __init__(self, root: Path, params: Params, data: tuple[str, int] | None = None) -> None:
        self.params = params
        self.space = distributions(params)
        self.images_hash, self.num_classes = data or ("", 0)
        self.sampler = BudgetSampler(params, self.num_classes)
        self.last_heartbeat = 0.0
        self.url = database_url(params.search.storage, root, key="search.storage")
        self.is_local = self.url.drivername == "sqlite"
        self.connect_options = {"timeout": 60} if self.is_local else {"connect_timeout": 10}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        if data is not None:  # fails before the database exists if no network is within the budget
            optuna.create_study(sampler=self.sampler).ask(self.space)
        self.storage, self.optuna_study = self._open(create=data is not None)
        if data is not None:
            self._check_identity(study_identity(params, self.images_hash))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the study, which all workers on all machines share; a worker that dies releases it."""
        if self.is_local:
            with FileLock(f"{self.url.database}.lock"):
                yield
            return
        engine = sqlalchemy.create_engine(self.url, poolclass=sqlalchemy.NullPool, connect_args=self.connect_options)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(hashtext('cifar-resnet search'))"))
            yield

    def _open(self, *, create: bool) -> tuple[optuna.storages.RDBStorage, optuna.Study]:
        try:
            self._check_tables(create=create)
            with self.lock() if create or self._can_lock else nullcontext():
                storage = self._create_storage()
                if create:
                    study = self._load_or_create_study(storage)
                else:
                    study = optuna.load_study(study_name=self.params.search.study, storage=storage)
                self._check_trials(study)
                return storage, study
        except UserError:
            raise
        except KeyError:
            raise self._missing_study_error() from None
        except Exception as error:
            is_driver = isinstance(error, ModuleNotFoundError) or isinstance(error.__cause__, ModuleNotFoundError)
            advice = DRIVER_ADVICE if is_driver else "start it, or name a database that the search has to itself"
            raise self._storage_error(error, advice) from None

    @contextmanager
    def require_storage(self) -> Iterator[None]:
        """Turn errors of the database in the block into user errors.

        Raises:
            UserError: if the database fails, for example because its server or disk does.
        """
        try:
            yield
        except (StorageInternalError, SQLAlchemyError) as error:
            raise self._storage_error(error, "fix this and run the same command again") from None

    def _storage_error(self, error: Exception, advice: str) -> UserError:
        message = without_secrets(str(error.__cause__ or error), self.url.render_as_string(hide_password=False))
        return UserError(
            f"search.storage: {self._address} cannot be used ({' '.join(message.split())[:200]}); {advice}"
        )

    @property
    def _can_lock(self) -> bool:
        """Whether the lock can be written; reading works without it, but may find a study that is being created."""
        return not self.is_local or os.access(Path(str(self.url.database)).parent, os.W_OK)

    @property
    def _address(self) -> str:
        return display_uri(self.url.render_as_string(hide_password=True))

    def _missing_study_error(self) -> UserError:
        study = self.params.search.study
        return UserError(f"search.study: there is no study {study} in {self._address}; run `make search` first")

    def _check_tables(self, *, create: bool) -> None:
        """Check the database before Optuna opens it and adds its tables, and before the lock adds a file."""
        tables = table_names(self.url.render_as_string(hide_password=False), self.connect_options)
        if "studies" in tables:  # the first table that Optuna creates
            return
        if tables:
            raise UserError(
                f"search.storage: {self._address} belongs to another program (it has the table {min(tables)} and none "
                "of Optuna's); name a database that the search has to itself"
            )
        if not create:
            raise self._missing_study_error()

    def _check_trials(self, study: optuna.Study) -> None:
        if IDENTITY_KEY not in study.user_attrs and study.get_trials(deepcopy=False):
            raise UserError(
                f"search.study: {study.study_name} in {self._address} has trials that `cifar-resnet search` did not "
                "create; choose another name"
            )

    def _create_storage(self) -> optuna.storages.RDBStorage:
        timeout = self.params.search.heartbeat_timeout_seconds
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # the heartbeat
            return optuna.storages.RDBStorage(
                self.url.render_as_string(hide_password=False),
                engine_kwargs={"connect_args": self.connect_options, "pool_pre_ping": not self.is_local},
                heartbeat_interval=max(1, timeout // 6),
                grace_period=timeout,
            )

    def _load_or_create_study(self, storage: optuna.storages.RDBStorage) -> optuna.Study:
        search = self.params.search
        return optuna.create_study(
            storage=storage,
            study_name=search.study,
            sampler=self.sampler,
            pruner=PRUNERS[search.pruner],
            directions=["maximize", "minimize"] if search.sampler == "nsga2" else ["maximize"],
            load_if_exists=True,
        )

    def _check_identity(self, identity: dict[str, Any]) -> None:
        with self.lock():
            stored = self.optuna_study.user_attrs.get(IDENTITY_KEY)
            if stored is None:
                self.optuna_study.set_user_attr(IDENTITY_KEY, identity)
                return
        stored = {"search.seed": identity["search.seed"]} | stored  # studies of earlier code do not name it
        differing = sorted(key for key in stored | identity if stored.get(key) != identity.get(key))
        if differing:
            raise UserError(
                f"search.study: {self.params.search.study} was created with other values of {', '.join(differing)}; "
                "choose another name, or restore the values"
            )

    @property
    def mlflow_run(self) -> str | None:
        """Id of the search's MLflow run, None before it is set."""
        run_id: str | None = self.optuna_study.user_attrs.get("mlflow_run")
        return run_id

    @mlflow_run.setter
    def mlflow_run(self, run_id: str) -> None:
        self.optuna_study.set_user_attr("mlflow_run", run_id)

    def ask(self, limit: int) -> SearchTrial | None:
        """The next trial for this worker; None if `limit` trials have ended or are running."""
        with self.lock():
            self._requeue_stale_trials()
            results = self.results()
            is_waiting = any(result.outcome == "waiting" for result in results)
            if not is_waiting and sum(result.counts_towards_limit for result in results) >= limit:
                return None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # optimize() sends heartbeats; here: self.heartbeat
                optuna_trial = self.optuna_study.ask(self.space)
            self.storage.record_heartbeat(optuna_trial._trial_id)
            optuna_trial.set_user_attr("worker", f"{platform.node()}:{os.getpid()}")
        overrides = to_overrides(self.params, optuna_trial.params)
        params = trial_params(self.params, overrides)
        trial = SearchTrial(optuna_trial, overrides, params, *model_size(params.model, self.num_classes))
        trial.optuna_trial.set_user_attr("changes", overrides)
        trial.optuna_trial.set_user_attr("parameters", trial.parameters)
        trial.optuna_trial.set_user_attr("multiply_adds", trial.multiply_adds)
        return trial

    def _requeue_stale_trials(self) -> None:
        """Queue the trials of dead workers again; the caller holds the lock.

        A running trial without a worker is one that a kill during `ask` left.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.optuna_study)
        trials = self.optuna_study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == TrialState.RUNNING and "worker" not in trial.user_attrs:
                self.optuna_study.tell(trial.number, state=TrialState.FAIL)
        retried = {trial.user_attrs.get("retry_of") for trial in trials}
        for trial in self.optuna_study.get_trials(deepcopy=False):
            if trial_outcome(trial) == "killed" and trial.number not in retried:
                self.optuna_study.add_trial(retry_trial(trial, self.space))

    def heartbeat(self, trial: SearchTrial) -> None:
        """Record that this worker is alive. Cheap: most calls do nothing.

        Raises:
            TakenOverError: if another worker has the trial.
        """
        if time.monotonic() - self.last_heartbeat < self.params.search.heartbeat_timeout_seconds / 6:
            return
        self._check_running(trial)
        self.storage.record_heartbeat(trial.optuna_trial._trial_id)
        self.last_heartbeat = time.monotonic()

    def _check_running(self, trial: SearchTrial) -> None:
        if self.storage.get_trial(trial.optuna_trial._trial_id).state != TrialState.RUNNING:
            raise TakenOverError

    def report(self, trial: SearchTrial, epoch: int, accuracy: float) -> bool:
        """Store the accuracy of an epoch and return whether to prune the trial now."""
        self._check_running(trial)
        trial.optuna_trial.set_user_attr("measured", [epoch, accuracy])
        if self.params.search.sampler == "nsga2":  # Optuna takes reports in single-objective studies only
            return False
        trial.optuna_trial.report(accuracy, epoch)
        return epoch < self.params.search.epochs and trial.optuna_trial.should_prune()

    def tell(self, trial: SearchTrial, outcome: str, *, seconds: float, reason: str = "") -> None:
        """Store the outcome: finished, pruned, failed (with the reason) or killed (the trial is queued again)."""
        with self.lock():
            self._check_running(trial)
            trial.optuna_trial.set_user_attr("seconds", round(seconds, 1))
            if outcome == "finished":
                accuracy = trial.optuna_trial.user_attrs["measured"][1]
                objectives = [accuracy, getattr(trial, self.params.search.cost)]
                self.optuna_study.tell(trial.optuna_trial, objectives[: len(self.optuna_study.directions)])
            elif outcome == "pruned":
                self.optuna_study.tell(trial.optuna_trial, state=TrialState.PRUNED)
            else:
                trial.optuna_trial.set_user_attr("reason" if outcome == "failed" else "interrupted", reason or True)
                self.optuna_study.tell(trial.optuna_trial, state=TrialState.FAIL)
                self._requeue_stale_trials()

    def results(self) -> list[TrialResult]:
        return [trial_result(trial) for trial in self.optuna_study.get_trials(deepcopy=False)]

    def shared_parameters(self) -> list[str]:
        """Names of the parameters that every finished trial uses.

        The values sampled for layers that a network does not have are without effect, so the parameters of layers that
        some finished trials do not have are skipped. So are those that were added to search.space after the trials.
        """
        finished = self.optuna_study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        default = len(self.params.model.channels)
        fewest = min(trial.params.get("model.layers", default) for trial in finished)
        sampled = (name for name in self.space if all(name in trial.params for trial in finished))
        layers = {name: name.rpartition(".")[2] for name in sampled}
        return [name for name, layer in layers.items() if not layer.isdecimal() or int(layer) < fewest]
