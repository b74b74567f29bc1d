"""The study that workers share: sampling, budgets, dead workers. No test here trains."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import ROOT, tiny_params

from cifar_resnet.errors import UserError
from cifar_resnet.params.file import Params, load_params, with_overrides
from cifar_resnet.search.space import (
    BudgetSampler,
    distributions,
    model_size,
    to_overrides,
    trial_params,
    within_budget,
)
from cifar_resnet.search.study import IDENTITY_KEY, Study, TakenOverError
from cifar_resnet.search.trial import MAX_ATTEMPTS, SearchTrial


def make_study(root: Path, **search: Any) -> Study:
    return Study(root, tiny_params(search=search), ("data", 10))


def ask(study: Study, limit: int = 100) -> SearchTrial:
    trial = study.ask(limit)
    assert trial is not None
    return trial


def finish(study: Study, trial: SearchTrial, accuracy: float) -> None:
    study.report(trial, 1, accuracy)
    study.tell(trial, "finished", seconds=1.0)


def age_heartbeats(root: Path) -> None:
    """As if the last heartbeat of every worker were an hour old."""
    with closing(sqlite3.connect(root / "search.db")) as database, database:
        database.execute("update trial_heartbeats set heartbeat = datetime('now', '-1 hour')")


def is_allowed(study: Study, sample: dict[str, Any]) -> bool:
    try:
        return within_budget(study.params, sample, 10)
    except ValueError:
        return False


def outcomes(study: Study) -> list[str]:
    return [result.outcome for result in study.results()]


def test_the_committed_space_holds_networks_within_the_budget() -> None:
    params = load_params(ROOT / "params.yaml")
    limit = params.search.max_multiply_adds
    in_memory = optuna.create_study(sampler=BudgetSampler(params, 10))
    layers = set()
    for _ in range(10):
        sample = in_memory.ask(distributions(params)).params
        trained = trial_params(params, to_overrides(params, sample))
        parameters, multiply_adds = model_size(trained.model, 10)
        assert parameters <= 5_000_000
        assert limit is None or multiply_adds <= limit
        assert trained.train.epochs == params.search.epochs
        layers.add(len(trained.model.channels))
    assert len(layers) > 1


def test_the_first_trial_has_the_values_of_params_if_the_search_may_try_them() -> None:
    def first_trial(overrides: dict[str, Any]) -> Params:
        params = with_overrides(committed, overrides)
        sample = optuna.create_study(sampler=BudgetSampler(params, 10)).ask(distributions(params)).params
        return trial_params(params, to_overrides(params, sample))

    committed = load_params(ROOT / "params.yaml")
    limit = committed.search.max_multiply_adds or 0
    assert first_trial({}) == trial_params(committed, {})
    assert 0.99 * limit < model_size(committed.model, 10)[1] <= limit  # the search is at the default's cost
    assert first_trial({"search.max_multiply_adds": limit // 2}).model != committed.model
    space = {"model.channels": [128], "train.filter_lr": {"low": 0.1, "high": 0.2, "scale": "linear"}}
    assert first_trial({"search.space": space, "search.max_multiply_adds": None}).model.channels == [128, 128, 128]


def test_samples_beyond_the_budget_do_not_become_trials(tmp_path: Path) -> None:
    limit = 4_000_000
    study = make_study(tmp_path, max_multiply_adds=limit)
    space = distributions(study.params)
    samples = [optuna.create_study(sampler=optuna.samplers.RandomSampler(seed)).ask(space).params
               for seed in range(20)]  # fmt: skip
    assert not all(is_allowed(study, sample) for sample in samples)
    trials = [ask(study) for _ in range(10)]
    assert [trial.number for trial in trials] == list(range(10))
    assert all(trial.multiply_adds <= limit for trial in trials)


def test_model_size_is_that_of_the_built_network(tmp_path: Path) -> None:
    from cifar_resnet.models import resnet

    params = tiny_params()
    model = resnet.build_model(params.model, [0.5] * 3, [0.2] * 3, num_classes=10)
    assert model_size(params.model, 10) == (resnet.num_parameters(model), resnet.multiply_adds(model))


def test_a_budget_that_no_network_meets_is_an_error_before_the_study_is_created(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of 1,000 samples .*search.max_multiply_adds \(10\)") as caught:
        make_study(tmp_path, max_multiply_adds=10)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_random_samples_depend_on_seed_and_number_only(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, first, second = make_study(tmp_path / "a"), make_study(tmp_path / "b"), make_study(tmp_path / "b")
    alone = [ask(one).overrides for _ in range(4)]
    assert [ask(study).overrides for study in (first, second, second, first)] == alone
    assert len({str(overrides) for overrides in alone}) > 1


@pytest.mark.parametrize(("sampler", "pruner"), [("tpe", "median"), ("nsga2", "none")])
def test_other_samplers_learn_from_earlier_trials(tmp_path: Path, sampler: str, pruner: str) -> None:
    study = make_study(tmp_path, sampler=sampler, pruner=pruner)
    rates = []
    for _ in range(26):
        trial = ask(study)
        rates.append(trial.params.train.filter_lr)
        finish(study, trial, 1 - trial.params.train.filter_lr)
    assert set(outcomes(study)) == {"finished"}
    assert sum(rates[-8:]) / 8 < sum(rates[:8]) / 8  # here a lower rate has a higher accuracy


def test_a_list_that_is_not_searched_is_extended_with_its_last_value() -> None:
    params = tiny_params(search={"space": {"model.layers": [1, 2, 3]}}, model={"kernels": [5, 3]})
    assert to_overrides(params, {"model.layers": 3})["model.kernels"] == [5, 3, 3]
    assert to_overrides(params, {"model.layers": 1})["model.channels"] == [8]
    assert to_overrides(params, {"model.layers": 2}) == {}


def test_a_trial_below_the_median_is_pruned_and_a_good_one_is_not(tmp_path: Path) -> None:
    study = make_study(tmp_path, epochs=4)
    for accuracy in (0.5, 0.55, 0.6, 0.65, 0.7):
        trial = ask(study)
        assert not any(study.report(trial, epoch, accuracy) for epoch in (1, 2, 3, 4))
        study.tell(trial, "finished", seconds=1.0)
    good, bad = ask(study), ask(study)
    assert [study.report(good, epoch, 0.7) for epoch in (1, 2)] == [False, False]
    assert [study.report(bad, epoch, 0.4) for epoch in (1, 2)] == [False, True]
    study.tell(bad, "pruned", seconds=1.0)
    result = study.results()[-1]
    assert (result.outcome, result.accuracy, result.epochs) == ("pruned", 0.4, 2)


def test_successive_halving_prunes_too(tmp_path: Path) -> None:
    study = make_study(tmp_path, epochs=4, pruner="halving")
    finish(study, ask(study), 0.6)
    finish(study, ask(study), 0.7)
    assert study.report(ask(study), 1, 0.1)


def test_the_limit_counts_trials_of_all_workers_and_restarts(tmp_path: Path) -> None:
    workers = [make_study(tmp_path), make_study(tmp_path)]
    trials = [ask(worker, limit=3) for worker in (*workers, workers[0])]
    assert [worker.ask(3) for worker in workers] == [None, None]
    finish(workers[0], trials[0], 0.5)
    workers[1].tell(trials[1], "failed", seconds=1.0, reason="no memory")
    assert make_study(tmp_path).ask(3) is None
    assert make_study(tmp_path).results()[1].reason == "no memory"
    assert ask(make_study(tmp_path), limit=4).number == 3


def test_an_interrupted_trial_is_the_next_one_again(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    trial = ask(study, limit=1)
    study.tell(trial, "killed", seconds=1.0)
    retry = ask(make_study(tmp_path), limit=1)
    assert retry.overrides == trial.overrides
    assert outcomes(study) == ["killed", "running"]
    assert study.results()[1].retry_of == 0


def test_a_trial_without_heartbeat_goes_to_another_worker_once(tmp_path: Path) -> None:
    silent, other = make_study(tmp_path), make_study(tmp_path)
    lost = ask(silent)
    assert other.ask(1) is None
    age_heartbeats(tmp_path)
    retry = ask(other, limit=1)
    assert retry.overrides == lost.overrides
    assert other.ask(1) is None
    with pytest.raises(TakenOverError):
        silent.heartbeat(lost)
    with pytest.raises(TakenOverError):
        finish(silent, lost, 0.9)
    finish(other, retry, 0.5)
    assert [(result.outcome, result.accuracy) for result in other.results()] == [("killed", None), ("finished", 0.5)]


def test_a_configuration_that_kills_its_workers_fails_after_three_attempts(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    for _ in range(MAX_ATTEMPTS):
        ask(study, limit=1)
        age_heartbeats(tmp_path)
    assert study.ask(1) is None
    assert outcomes(study) == ["killed"] * (MAX_ATTEMPTS - 1) + ["failed"]
    assert study.results()[-1].reason == "its worker died 3 times"


@pytest.mark.filterwarnings("ignore:Heartbeat")  # Study.ask, whose steps this test repeats, ignores it as well
def test_a_kill_during_ask_is_repaired_by_the_next_ask(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    study.optuna_study.ask({name: choices for name, choices in study.space.items() if name == "model.layers"})
    trial = ask(study, limit=1)
    assert trial.overrides
    assert outcomes(study) == ["killed", "running"]
    study.optuna_study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # as if killed before the retry is queued
    assert ask(study, limit=1).overrides == trial.overrides


def test_a_study_created_with_another_space_or_budget_is_an_error(tmp_path: Path) -> None:
    make_study(tmp_path)
    make_study(tmp_path, trials=9, sampler="tpe", pruner="none")
    with pytest.raises(UserError) as caught:
        make_study(tmp_path, epochs=3, space={"model.layers": [1, 2]})
    assert str(caught.value) == (
        "search.study: architecture was created with other values of model.blocks, model.channels, "
        "model.head_pool_kernel, search.epochs, search.space, train.filter_lr; choose another name, or restore the "
        "values"
    )
    with pytest.raises(UserError, match="was created with other values of training images"):
        Study(tmp_path, tiny_params(), ("other data", 10))
    assert make_study(tmp_path, epochs=3, study="second").results() == []


def test_a_study_from_other_weights_is_not_continued(tmp_path: Path) -> None:
    make_study(tmp_path)
    with pytest.raises(UserError, match=r"was created with other values of train.init;"):
        Study(tmp_path, tiny_params(train={"init": "pretrained"}), ("data", 10))


def test_an_unusable_database_is_one_line_without_the_password(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    local = (f"sqlite:///{tmp_path}/file/search.db", f"sqlite:///{tmp_path}")
    for storage in ("postgresql://me:secret@127.0.0.1:9/none", *local):
        with pytest.raises(UserError, match=r"search.storage: .* cannot be used") as caught:
            make_study(tmp_path, storage=storage)
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not Path(f"{tmp_path}.lock").exists()


def test_a_database_that_fails_later_is_one_line(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    with closing(sqlite3.connect(tmp_path / "search.db")) as database, database:
        database.execute("drop table trials")
    with pytest.raises(UserError) as caught, study.require_storage():
        study.ask(1)
    message = str(caught.value)
    assert message.startswith(f"search.storage: {tmp_path}/search.db cannot be used (")
    assert "no such table: trials" in message
    assert message.endswith("); fix this and run the same command again")
    assert "\n" not in message


def test_a_missing_study_is_one_line_with_the_path_of_the_database(tmp_path: Path) -> None:
    root = tmp_path / "it's a #1"
    with pytest.raises(UserError) as caught:
        Study(root, tiny_params())
    message = f"search.study: there is no study architecture in {root}/search.db; run `make search` first"
    assert str(caught.value) == message
    assert not root.exists()


@pytest.mark.parametrize("data", [None, ("data", 10)])
def test_a_database_of_another_program_is_refused_and_not_changed(tmp_path: Path, data: tuple[str, int] | None) -> None:
    with closing(sqlite3.connect(tmp_path / "search.db")) as database, database:
        database.execute("create table mine (number)")
    before = (tmp_path / "search.db").read_bytes()
    with pytest.raises(UserError) as caught:
        Study(tmp_path, tiny_params(), data)
    assert str(caught.value) == (
        f"search.storage: {tmp_path}/search.db belongs to another program (it has the table mine and none of "
        "Optuna's); name a database that the search has to itself"
    )
    assert (tmp_path / "search.db").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["search.db"]


def test_reading_leaves_an_empty_database_empty(tmp_path: Path) -> None:
    (tmp_path / "search.db").touch()
    with pytest.raises(UserError, match=r"there is no study architecture in .*; run `make search` first"):
        Study(tmp_path, tiny_params())
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("search.db", 0)]


@pytest.mark.parametrize("data", [None, ("data", 10)])
def test_a_study_with_trials_of_another_program_is_refused_and_not_changed(
    tmp_path: Path, data: tuple[str, int] | None
) -> None:
    foreign = optuna.create_study(storage=f"sqlite:///{tmp_path}/search.db", study_name="architecture")
    foreign.optimize(lambda _: 0.5, n_trials=1)
    with pytest.raises(UserError) as caught:
        Study(tmp_path, tiny_params(), data)
    assert str(caught.value) == (
        f"search.study: architecture in {tmp_path}/search.db has trials that `cifar-resnet search` did not create; "
        "choose another name"
    )
    assert foreign.user_attrs == {}


@pytest.mark.parametrize("storage", ["postgresql://u:secret@h:abc/db", "postgresql://u:secret@[::1/db"])
def test_an_address_that_is_no_url_is_one_line_without_the_password(tmp_path: Path, storage: str) -> None:
    with pytest.raises(UserError) as caught:
        Study(tmp_path, tiny_params(search={"storage": storage}))
    assert str(caught.value) == (
        "search.storage: postgresql://... is not an address, for example because its port is not a number; allowed "
        "are sqlite:///file and postgresql+psycopg2://user@host:port/database"
    )


def test_a_value_that_no_trial_allows_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^search: none of 1,000 samples is valid, most often because of .*warmup_epochs"
    ):
        Study(tmp_path, tiny_params(train={"warmup_epochs": 2.0, "epochs": 3}, search={"epochs": 2}), ("data", 10))


def test_parameters_that_were_added_after_the_trials_are_not_shared(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    finish(study, ask(study), 0.5)
    before = study.shared_parameters()
    study.space = study.space | {"train.ema_decay": optuna.distributions.CategoricalDistribution([0.9, 0.95])}
    assert study.shared_parameters() == before


def test_a_study_with_other_images_is_not_continued(tmp_path: Path) -> None:
    make_study(tmp_path)
    with pytest.raises(UserError, match=r"was created with other values of search.seed; choose another name"):
        make_study(tmp_path, seed=1)


def test_a_study_of_earlier_code_which_does_not_name_the_seed_is_continued(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    identity = study.optuna_study.user_attrs[IDENTITY_KEY]
    study.optuna_study.set_user_attr(IDENTITY_KEY, {key: identity[key] for key in identity if key != "search.seed"})
    make_study(tmp_path)
