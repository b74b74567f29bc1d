"""The study that workers share: draws, budgets, workers that die. No test here trains."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import ROOT, tiny_params

from cifar_resnet.errors import UserError
from cifar_resnet.params.file import load_params
from cifar_resnet.search.space import (
    BudgetSampler,
    distributions,
    model_size,
    to_overrides,
    trial_params,
    within_budget,
)
from cifar_resnet.search.study import ATTEMPTS, Study, TakenOverError, Trial


def study(root: Path, **search: Any) -> Study:
    return Study(root, tiny_params(search=search), "data")


def claimed(found: Study, limit: int = 100) -> Trial:
    trial = found.claim(limit)
    assert trial is not None
    return trial


def finish(found: Study, trial: Trial, accuracy: float) -> None:
    found.report(trial, 1, accuracy)
    found.end(trial, "finished", seconds=1.0)


def fall_silent(root: Path) -> None:
    """As if the last sign of life of every worker were an hour old."""
    with closing(sqlite3.connect(root / "search.db")) as database, database:
        database.execute("update trial_heartbeats set heartbeat = datetime('now', '-1 hour')")


def outcomes(found: Study) -> list[str]:
    return [result.outcome for result in found.results()]


def test_the_committed_space_holds_networks_within_the_budget() -> None:
    values = load_params(ROOT / "params.yaml")
    most = values.search.max_multiply_adds
    memory = optuna.create_study(sampler=BudgetSampler(values))
    layers = set()
    for _ in range(10):
        drawn = memory.ask(distributions(values)).params
        wanted = trial_params(values, to_overrides(values, drawn))
        parameters, multiply_adds = model_size(wanted.model)
        assert parameters <= 5_000_000
        assert most is None or multiply_adds <= most
        assert wanted.train.epochs == values.search.epochs
        layers.add(len(wanted.model.channels))
    assert len(layers) > 1


def test_draws_beyond_the_budget_are_no_trials(tmp_path: Path) -> None:
    bound = 4_000_000
    found = study(tmp_path, max_multiply_adds=bound)
    everything = distributions(found.values)
    drawn = [optuna.create_study(sampler=optuna.samplers.RandomSampler(seed)).ask(everything).params
             for seed in range(20)]  # fmt: skip
    assert not all(within_budget(found.values, each) for each in drawn)
    trials = [claimed(found) for _ in range(10)]
    assert [trial.number for trial in trials] == list(range(10))
    assert all(trial.multiply_adds <= bound for trial in trials)


def test_a_network_is_counted_as_it_is_built(tmp_path: Path) -> None:
    from cifar_resnet.models import resnet

    values = tiny_params()
    built = resnet.build_model(values.model, [0.5] * 3, [0.2] * 3)
    assert model_size(values.model) == (resnet.num_parameters(built), resnet.multiply_adds(built))


def test_a_budget_that_no_network_meets_is_refused_before_there_is_a_study(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of 1,000 draws .*search.max_multiply_adds \(10\)") as caught:
        study(tmp_path, max_multiply_adds=10)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_random_draws_depend_on_seed_and_number_only(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, first, second = study(tmp_path / "a"), study(tmp_path / "b"), study(tmp_path / "b")
    alone = [claimed(one).changes for _ in range(4)]
    assert [claimed(each).changes for each in (first, second, second, first)] == alone
    assert len({str(changes) for changes in alone}) > 1


@pytest.mark.parametrize(("sampler", "pruner"), [("tpe", "median"), ("nsga2", "none")])
def test_other_samplers_learn_from_the_trials_before(tmp_path: Path, sampler: str, pruner: str) -> None:
    found = study(tmp_path, sampler=sampler, pruner=pruner)
    rates = []
    for _ in range(26):
        trial = claimed(found)
        rates.append(trial.values.train.filter_lr)
        finish(found, trial, 1 - trial.values.train.filter_lr)
    assert set(outcomes(found)) == {"finished"}
    assert sum(rates[-8:]) / 8 < sum(rates[:8]) / 8  # of which the lower are the better here


def test_a_list_that_is_not_searched_goes_on_with_its_last_value() -> None:
    values = tiny_params(search={"space": {"model.layers": [1, 2, 3]}}, model={"kernels": [5, 3]})
    assert to_overrides(values, {"model.layers": 3})["model.kernels"] == [5, 3, 3]
    assert to_overrides(values, {"model.layers": 1})["model.channels"] == [8]
    assert to_overrides(values, {"model.layers": 2}) == {}


def test_a_trial_worse_than_the_median_is_pruned_and_one_that_is_good_is_not(tmp_path: Path) -> None:
    found = study(tmp_path, epochs=4)
    for accuracy in (0.5, 0.55, 0.6, 0.65, 0.7):
        trial = claimed(found)
        assert not any(found.report(trial, epoch, accuracy) for epoch in (1, 2, 3, 4))
        found.end(trial, "finished", seconds=1.0)
    good, bad = claimed(found), claimed(found)
    assert [found.report(good, epoch, 0.7) for epoch in (1, 2)] == [False, False]
    assert [found.report(bad, epoch, 0.4) for epoch in (1, 2)] == [False, True]
    found.end(bad, "pruned", seconds=1.0)
    result = found.results()[-1]
    assert (result.outcome, result.accuracy, result.epochs) == ("pruned", 0.4, 2)


def test_successive_halving_prunes_too(tmp_path: Path) -> None:
    found = study(tmp_path, epochs=4, pruner="halving")
    finish(found, claimed(found), 0.6)
    finish(found, claimed(found), 0.7)
    assert found.report(claimed(found), 1, 0.1)


def test_trials_are_counted_over_all_workers_and_restarts(tmp_path: Path) -> None:
    workers = [study(tmp_path), study(tmp_path)]
    trials = [claimed(worker, limit=3) for worker in (*workers, workers[0])]
    assert [worker.claim(3) for worker in workers] == [None, None]
    finish(workers[0], trials[0], 0.5)
    workers[1].end(trials[1], "failed", seconds=1.0, reason="no memory")
    assert study(tmp_path).claim(3) is None
    assert study(tmp_path).results()[1].reason == "no memory"
    assert claimed(study(tmp_path), limit=4).number == 3


def test_an_interrupted_trial_is_the_next_one_again(tmp_path: Path) -> None:
    found = study(tmp_path)
    trial = claimed(found, limit=1)
    found.end(trial, "killed", seconds=1.0)
    again = claimed(study(tmp_path), limit=1)
    assert again.changes == trial.changes
    assert outcomes(found) == ["killed", "running"]
    assert found.results()[1].retry_of == 0


def test_the_trial_of_a_silent_worker_goes_to_another_once(tmp_path: Path) -> None:
    silent, other = study(tmp_path), study(tmp_path)
    lost = claimed(silent)
    assert other.claim(1) is None
    fall_silent(tmp_path)
    taken = claimed(other, limit=1)
    assert taken.changes == lost.changes
    assert other.claim(1) is None
    with pytest.raises(TakenOverError):
        silent.beat(lost)
    with pytest.raises(TakenOverError):
        finish(silent, lost, 0.9)
    finish(other, taken, 0.5)
    assert [(result.outcome, result.accuracy) for result in other.results()] == [("killed", None), ("finished", 0.5)]


def test_a_configuration_that_kills_its_workers_is_given_up(tmp_path: Path) -> None:
    found = study(tmp_path)
    for _ in range(ATTEMPTS):
        claimed(found, limit=1)
        fall_silent(tmp_path)
    assert found.claim(1) is None
    assert outcomes(found) == ["killed"] * (ATTEMPTS - 1) + ["failed"]
    assert found.results()[-1].reason == "its worker died, 3 times"


@pytest.mark.filterwarnings("ignore:Heartbeat")  # which claim, that is played here, hides
def test_a_kill_in_the_middle_of_a_claim_leaves_nothing_behind(tmp_path: Path) -> None:
    found = study(tmp_path)
    found.study.ask({name: each for name, each in found.space.items() if name == "model.layers"})
    trial = claimed(found, limit=1)
    assert trial.changes
    assert outcomes(found) == ["killed", "running"]
    found.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # and before the configuration was put in line
    assert claimed(found, limit=1).changes == trial.changes


def test_importance_is_shared_among_the_parameters_that_all_finished_trials_have(tmp_path: Path) -> None:
    found = study(tmp_path)
    for _ in range(8):
        trial = claimed(found)
        finish(found, trial, 0.5 + 0.1 * len(trial.values.model.channels))
    shares = found.importance()
    assert set(shares) == {
        "model.layers",
        "model.channels.0",
        "model.blocks.0",
        "model.head_pool_kernel",
        "train.filter_lr",
    }
    assert max(shares, key=shares.__getitem__) == "model.layers"
    assert sum(shares.values()) == pytest.approx(1)


def test_a_study_made_with_another_space_or_budget_is_refused(tmp_path: Path) -> None:
    study(tmp_path)
    study(tmp_path, trials=9, sampler="tpe", pruner="none")
    with pytest.raises(UserError) as caught:
        study(tmp_path, epochs=3, space={"model.layers": [1, 2]})
    assert str(caught.value) == (
        "search.study: architecture was made with another model.blocks, model.channels, model.head_pool_kernel, search.epochs, "
        "search.space, train.filter_lr; give it another name, or put the values back"
    )
    with pytest.raises(UserError, match="was made with another training images"):
        Study(tmp_path, tiny_params(), "other data")
    assert study(tmp_path, epochs=3, study="second").results() == []


def test_a_database_that_cannot_be_used_is_one_line_without_the_password(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for storage in ("postgresql://me:secret@127.0.0.1:9/none", f"sqlite:///{tmp_path}/file/search.db"):
        with pytest.raises(UserError, match=r"search.storage: .* cannot be used") as caught:
            study(tmp_path, storage=storage)
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"there is no architecture in sqlite:///.*run `make search` first"):
        Study(tmp_path, tiny_params())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
