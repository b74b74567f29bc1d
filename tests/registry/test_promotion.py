import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny, tiny_params
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from cifar_resnet.errors import UserError
from cifar_resnet.params.sections import RegisterParams
from cifar_resnet.registry import promotion
from cifar_resnet.registry.promotion import (
    Decision,
    decode_mask,
    encode_mask,
    get_champion,
    previous_champion,
    promote_if_better,
    promotion_history,
    set_champion,
)
from cifar_resnet.tracking.client import connect, registry_lock

POLICY = {"model_name": "model", "min_accuracy": 0.9, "max_parameters": 100, "min_gain": 0.001, "significance": 0.05}
NAME = "model"
IMAGES = 10_000


def policy(**changes: object) -> RegisterParams:
    return tiny_params(register=POLICY | changes).register_


def hits(accuracy: float, seed: int = 0, luck: float = 0.0) -> np.ndarray:  # type: ignore[type-arg]
    """The same images for all seeds, apart from a share `luck` that is swapped between right and wrong."""
    right = np.arange(IMAGES) < accuracy * IMAGES
    random, swapped = np.random.default_rng(seed), round(luck * IMAGES / 2)
    for value in (True, False):
        right[random.choice(np.flatnonzero(right == value), swapped, replace=False)] ^= True
    return right


def add(client: MlflowClient, right: np.ndarray, **tags: object) -> int:  # type: ignore[type-arg]
    evidence = {"accuracy": right.mean(), "parameters": 50, "test_data": "same", "test_correct": encode_mask(right)}
    values = {key: str(value) for key, value in (evidence | tags).items() if value is not None}
    return int(client.create_model_version(NAME, source="/nowhere", run_id=None, tags=values).version)


def candidate(client: MlflowClient, accuracy: float, **tags: object) -> Decision:
    return promote_if_better(client, add(client, hits(accuracy), **tags), policy())


def aliases(client: MlflowClient) -> dict[str, int]:
    return {alias: int(version) for alias, version in client.get_registered_model(NAME).aliases.items()}


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the model and no version: to make the tables takes seconds, to copy them none."""
    root = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        tiny(patch)
        connect(root).create_registered_model(NAME)
    return root / "mlflow.db"


@pytest.fixture
def client(empty: Path, tmp_path: Path) -> MlflowClient:
    for file in empty.parent.glob("mlflow.db*"):  # with what is written ahead
        shutil.copy(file, tmp_path)
    return connect(tmp_path)


def test_the_first_within_the_policy_is_champion(client: MlflowClient) -> None:
    assert get_champion(client, NAME) is None
    weak = candidate(client, 0.89)
    assert (weak.champion, weak.reason) == (False, "accuracy 89.00% is below register.min_accuracy 90.00%")
    large = candidate(client, 0.95, parameters=101)
    assert (large.champion, large.reason) == (False, "101 parameters, register.max_parameters allows 100")
    assert aliases(client) == {"challenger": 2}
    first = candidate(client, 0.93)
    assert (first.champion, first.reason, first.comparison) == (True, "there was no champion", None)
    assert aliases(client) == {"challenger": 2, "champion": 3}


def test_a_gain_beyond_luck_takes_the_alias_and_its_numbers_are_kept(client: MlflowClient) -> None:
    candidate(client, 0.93)
    better = candidate(client, 0.94)
    assert (better.champion, better.previous_champion, better.previous_accuracy) == (True, 1, 0.93)
    assert better.comparison is not None
    assert (better.comparison.only_first, better.comparison.only_second) == (100, 0)
    assert better.comparison.p_value < 1e-6
    assert better.reason.startswith("accuracy 94.00% against version 1's 93.00%: +1.00 points (95 % interval +0.")
    tags = client.get_model_version(NAME, "2").tags
    assert tags["decision_champion"] == "True"
    assert tags["decision_reason"] == better.reason
    assert float(tags["decision_p_value"]) == better.comparison.p_value
    assert aliases(client) == {"champion": 2}


def test_a_gain_that_may_be_luck_makes_a_challenger(client: MlflowClient) -> None:
    promote_if_better(client, add(client, hits(0.93)), policy())
    right = hits(0.932, luck=0.08)
    lucky = promote_if_better(client, add(client, right), policy())
    assert not lucky.champion
    assert lucky.comparison is not None
    assert lucky.comparison.difference == pytest.approx(0.002)
    assert lucky.comparison.p_value > 0.05
    assert "may be luck, register.significance is 0.05" in lucky.reason
    assert aliases(client) == {"champion": 1, "challenger": 2}
    without = promote_if_better(client, 2, policy(significance=1.0))
    assert (without.champion, aliases(client)) == (True, {"champion": 2})


@pytest.mark.parametrize("accuracy", [0.93, 0.92, 0.9309])
def test_no_gain_and_one_below_min_gain_leave_the_champion(client: MlflowClient, accuracy: float) -> None:
    candidate(client, 0.93)
    equal = candidate(client, accuracy)
    assert not equal.champion
    assert "is too little gain, register.min_gain is 0.001" in equal.reason
    assert aliases(client) == {"champion": 1, "challenger": 2}


def test_the_champion_again_stays_and_leaves_no_trace_in_the_history(client: MlflowClient) -> None:
    candidate(client, 0.93)
    again = promote_if_better(client, 1, policy(min_accuracy=0.99))
    assert (again.champion, again.reason) == (True, "it was so before")
    assert len(promotion_history(client, NAME)) == 1


def test_accuracies_on_other_test_data_are_not_compared(client: MlflowClient) -> None:
    candidate(client, 0.93)
    other = candidate(client, 0.99, test_data="other")
    assert (other.champion, other.reason) == (False, "version 1 stays: it was measured on other test data")


def test_a_champion_without_evidence_is_not_beaten_by_numbers_alone(client: MlflowClient) -> None:
    client.set_registered_model_alias(NAME, "champion", str(add(client, hits(0.93), test_correct=None)))
    other = candidate(client, 0.99)
    assert not other.champion
    assert other.reason == "version 1 stays: what it had right is not recorded; register it again"


@given(st.lists(st.booleans(), max_size=50))
def test_evidence_is_unpacked_as_it_was_packed(right: list[bool]) -> None:
    assert decode_mask(encode_mask(np.array(right, dtype=bool))).tolist() == right


def test_evidence_of_the_test_data_fits_in_a_tag_of_postgresql() -> None:
    assert len(encode_mask(np.random.default_rng(0).random(IMAGES) < 0.94)) < 1500  # 5,000 fit


def test_rollback_goes_back_one_champion_at_a_time_and_is_recorded(client: MlflowClient) -> None:
    for accuracy in (0.92, 0.93, 0.94):
        candidate(client, accuracy)
    for expected in (2, 1):
        assert previous_champion(client, NAME) == expected
        set_champion(client, NAME, expected, action="rollback", why="it errs on ships")
    with pytest.raises(UserError, match="no earlier champion is recorded"):
        previous_champion(client, NAME)
    set_champion(client, NAME, 3, action="promote", why="ships again")
    assert previous_champion(client, NAME) == 1
    found = promotion_history(client, NAME)
    assert [(change.before, change.after) for change in found] == [(None, 1), (1, 2), (2, 3), (3, 2), (2, 1), (1, 3)]
    assert found[3].why == "it errs on ships"
    assert "@" in found[3].who
    assert found[3].when.endswith("+00:00")


def test_the_gate_does_not_bring_back_what_was_rolled_back(client: MlflowClient) -> None:
    candidate(client, 0.92)
    candidate(client, 0.93)
    set_champion(client, NAME, 1, action="rollback", why="it errs on ships")
    again = promote_if_better(client, 2, policy())
    assert (again.champion, again.reason) == (
        False,
        "it was rolled back (it errs on ships) and needs `promote 2` by hand",
    )
    assert aliases(client) == {"champion": 1, "challenger": 2}
    set_champion(client, NAME, 2, action="promote", why="it does not")
    assert promote_if_better(client, 2, policy()).champion


def test_an_alias_moved_elsewhere_rolls_back_to_the_last_recorded_champion(client: MlflowClient) -> None:
    for accuracy in (0.92, 0.93):
        candidate(client, accuracy)
    client.set_registered_model_alias(NAME, "champion", str(add(client, hits(0.5))))
    assert previous_champion(client, NAME) == 2


def test_a_deleted_version_is_passed_over(client: MlflowClient) -> None:
    for accuracy in (0.92, 0.93, 0.94):
        candidate(client, accuracy)
    client.delete_model_version(NAME, "2")
    assert previous_champion(client, NAME) == 1


def test_registrations_at_once_take_turns(client: MlflowClient, tmp_path: Path) -> None:
    inside, most = 0, 0

    def register(accuracy: float) -> None:
        nonlocal inside, most
        with registry_lock(client, tmp_path):
            inside += 1
            most = max(most, inside)
            candidate(client, accuracy)
            time.sleep(0.05)
            inside -= 1

    threads = [threading.Thread(target=register, args=(accuracy,)) for accuracy in (0.95, 0.92, 0.94, 0.93)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    present = get_champion(client, NAME)
    assert present is not None
    assert float(present.tags["accuracy"]) == 0.95
    moves = promotion_history(client, NAME)
    assert [change.before for change in moves] == [None, *(change.after for change in moves[:-1])]
    assert moves[-1].after == int(present.version)


def test_a_lock_that_is_not_given_up_is_named(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "LOCK_SECONDS", 0.1)
    with (
        registry_lock(client, tmp_path),
        pytest.raises(UserError, match=r"mlflow\.db\.lock: another process"),
        registry_lock(client, tmp_path),
    ):
        pass


def test_a_champion_crowned_elsewhere_in_the_same_moment_is_said(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate(client, 0.93)
    move = set_champion

    def overtaken(client: MlflowClient, name: str, version: int, **how: object) -> None:
        move(client, name, version, **how)  # type: ignore[arg-type]
        client.set_registered_model_alias(name, "champion", "1")

    monkeypatch.setattr(promotion, "move", overtaken)
    late = candidate(client, 0.94)
    assert (late.champion, late.reason) == (False, "version 1 took the alias at the same time")
