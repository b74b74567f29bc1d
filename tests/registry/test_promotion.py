import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny, tiny_params
from mlflow import MlflowClient

from cifar_resnet.errors import UserError
from cifar_resnet.params.schema import RegisterParams
from cifar_resnet.registry import promotion
from cifar_resnet.registry.evidence import encode_mask, pack_evidence
from cifar_resnet.registry.promotion import (
    Decision,
    get_champion,
    previous_champion,
    promote_if_better,
    promotion_history,
    set_champion,
)
from cifar_resnet.tracking import client as tracking_client
from cifar_resnet.tracking.client import connect, registry_lock

POLICY = {"model_name": "model", "min_accuracy": 0.9, "max_parameters": 100, "min_gain": 0.001, "significance": 0.05}
NAME = "model"
IMAGES = 10_000


def policy(**changes: object) -> RegisterParams:
    return tiny_params(register=POLICY | changes).register_


def correct_mask(accuracy: float, seed: int = 0, noise: float = 0.0) -> np.ndarray:  # type: ignore[type-arg]
    """The first images are correct, apart from a share `noise` that is swapped between correct and incorrect."""
    correct = np.arange(IMAGES) < accuracy * IMAGES
    random, swapped = np.random.default_rng(seed), round(noise * IMAGES / 2)
    for value in (True, False):
        correct[random.choice(np.flatnonzero(correct == value), swapped, replace=False)] ^= True
    return correct


def add_version(
    client: MlflowClient,
    correct: np.ndarray,  # type: ignore[type-arg]
    *,
    packed: bool = True,
    **values: object,
) -> int:
    """Add a version with evidence; not `packed`: as an earlier version of this project registered it."""
    evidence = {"accuracy": correct.mean(), "parameters": 50, "test_data": "same", "test_correct": encode_mask(correct)}
    texts = {key: str(value) for key, value in (evidence | values).items() if value is not None}
    tags = pack_evidence(texts) if packed else texts
    return int(client.create_model_version(NAME, source="/nowhere", run_id=None, tags=tags).version)


def register_candidate(client: MlflowClient, accuracy: float, **tags: object) -> Decision:
    return promote_if_better(client, add_version(client, correct_mask(accuracy), **tags), policy())


def aliases(client: MlflowClient) -> dict[str, int]:
    return {alias: int(version) for alias, version in client.get_registered_model(NAME).aliases.items()}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the model and no version. Creating the tables takes seconds, so tests copy this one."""
    root = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        tiny(patch)
        connect(root).create_registered_model(NAME)
    return root / "mlflow.db"


@pytest.fixture
def client(empty_database: Path, tmp_path: Path) -> MlflowClient:
    for file in empty_database.parent.glob("mlflow.db*"):  # with the write-ahead log
        shutil.copy(file, tmp_path)
    return connect(tmp_path)


def test_the_first_version_within_the_policy_becomes_champion(client: MlflowClient) -> None:
    assert get_champion(client, NAME) is None
    weak = register_candidate(client, 0.89)
    assert (weak.champion, weak.reason) == (False, "accuracy 89.00% is below register.min_accuracy 90.00%")
    large = register_candidate(client, 0.95, parameters=101)
    assert (large.champion, large.reason) == (False, "101 parameters, register.max_parameters allows 100")
    assert aliases(client) == {"challenger": 2}
    first = register_candidate(client, 0.93)
    assert (first.champion, first.reason, first.comparison) == (True, "there was no champion", None)
    assert aliases(client) == {"challenger": 2, "champion": 3}


def test_a_significant_gain_takes_the_alias_and_its_numbers_are_stored(client: MlflowClient) -> None:
    register_candidate(client, 0.93)
    better = register_candidate(client, 0.94)
    assert (better.champion, better.previous_champion, better.previous_accuracy) == (True, 1, 0.93)
    assert better.comparison is not None
    assert (better.comparison.only_first, better.comparison.only_second) == (100, 0)
    assert better.comparison.p_value < 1e-6
    assert better.reason.startswith("accuracy 94.00% against version 1's 93.00%: +1.00 points (95 % interval +0.")
    assert client.get_model_version(NAME, "2").tags["decision"] == f"champion: {better.reason}"
    assert aliases(client) == {"champion": 2}


def test_a_gain_that_is_not_significant_makes_a_challenger(client: MlflowClient) -> None:
    promote_if_better(client, add_version(client, correct_mask(0.93)), policy())
    correct = correct_mask(0.932, noise=0.08)
    decision = promote_if_better(client, add_version(client, correct), policy())
    assert not decision.champion
    assert decision.comparison is not None
    assert decision.comparison.difference == pytest.approx(0.002)
    assert decision.comparison.p_value > 0.05
    assert "is not significant, register.significance is 0.05" in decision.reason
    assert aliases(client) == {"champion": 1, "challenger": 2}
    without_test = promote_if_better(client, 2, policy(significance=1.0))
    assert (without_test.champion, aliases(client)) == (True, {"champion": 2})


@pytest.mark.parametrize("accuracy", [0.93, 0.92, 0.9309])
def test_without_a_gain_of_min_gain_the_champion_stays(client: MlflowClient, accuracy: float) -> None:
    register_candidate(client, 0.93)
    equal = register_candidate(client, accuracy)
    assert not equal.champion
    assert "is too small a gain, register.min_gain is 0.001" in equal.reason
    assert aliases(client) == {"champion": 1, "challenger": 2}


def test_registering_the_champion_again_adds_nothing_to_the_history(client: MlflowClient) -> None:
    register_candidate(client, 0.93)
    again = promote_if_better(client, 1, policy(min_accuracy=0.99))
    assert (again.champion, again.reason) == (True, "it is already the champion")
    assert len(promotion_history(client, NAME)) == 1
    assert client.get_model_version(NAME, "1").tags["decision"] == "champion: there was no champion"


def test_a_version_whose_values_are_in_tags_of_their_own_is_compared_and_rolled_back_to(client: MlflowClient) -> None:
    promote_if_better(client, add_version(client, correct_mask(0.93), packed=False), policy())
    worse = register_candidate(client, 0.92)
    assert not worse.champion
    assert worse.comparison is not None
    assert (worse.comparison.only_first, worse.comparison.only_second) == (0, 100)
    better = register_candidate(client, 0.94)
    assert (better.champion, better.previous_champion, better.previous_accuracy) == (True, 1, 0.93)
    assert previous_champion(client, NAME) == 1
    set_champion(client, NAME, 1, action="rollback", why="it errs on ships")
    earlier = add_version(client, correct_mask(0.95), packed=False)
    assert promote_if_better(client, earlier, policy()).champion


def test_accuracies_on_other_test_data_are_not_compared(client: MlflowClient) -> None:
    register_candidate(client, 0.93)
    other = register_candidate(client, 0.99, test_data="other")
    assert not other.champion
    assert other.reason == (
        "version 1 stays: it was evaluated on other test images, so the two are not compared; "
        "override with `cifar-resnet registry promote 2`"
    )


def test_masks_of_unequal_length_are_not_compared(client: MlflowClient) -> None:
    promote_if_better(client, add_version(client, correct_mask(0.93)), policy())
    decision = promote_if_better(client, add_version(client, correct_mask(0.99)[:-1]), policy())
    assert not decision.champion
    assert decision.reason == (
        f"version 1 stays: its test_correct has {len(correct_mask(0.93)):,} images; "
        "override with `cifar-resnet registry promote 2`"
    )


def test_a_candidate_with_other_classes_is_not_compared(client: MlflowClient) -> None:
    register_candidate(client, 0.93, classes='["cat", "dog"]')
    other = register_candidate(client, 0.99, classes='["cat", "dog", "owl", "cow"]')
    assert (other.champion, other.comparison) == (False, None)
    assert other.reason == (
        "version 1 stays: it knows other classes (cat, dog) than this version (cat, dog, owl and 1 more), so the two "
        "are not compared; register networks for other classes under another register.model_name, or override with "
        "`cifar-resnet registry promote 2`"
    )
    assert aliases(client) == {"champion": 1, "challenger": 2}
    assert register_candidate(client, 0.95, classes='["cat", "dog"]').champion


def test_a_champion_of_earlier_code_has_no_classes_and_is_compared(client: MlflowClient) -> None:
    register_candidate(client, 0.93)
    assert register_candidate(client, 0.95, classes='["cat", "dog"]').champion


def test_a_champion_without_a_mask_is_not_replaced(client: MlflowClient) -> None:
    client.set_registered_model_alias(NAME, "champion", str(add_version(client, correct_mask(0.93), test_correct=None)))
    other = register_candidate(client, 0.99)
    assert not other.champion
    assert other.reason == (
        "version 1 stays: it has no test_correct in its tags; register it again, or override with "
        "`cifar-resnet registry promote 2`"
    )


def test_a_champion_that_was_made_in_mlflow_has_no_accuracy_and_is_not_replaced(client: MlflowClient) -> None:
    other = client.create_model_version(NAME, source="/nowhere").version
    client.set_registered_model_alias(NAME, "champion", str(other))
    decision = register_candidate(client, 0.95)
    assert (decision.champion, decision.previous_champion, decision.previous_accuracy) == (False, int(other), None)


def test_rollback_goes_back_one_champion_at_a_time_and_is_recorded(client: MlflowClient) -> None:
    for accuracy in (0.92, 0.93, 0.94):
        register_candidate(client, accuracy)
    for expected in (2, 1):
        assert previous_champion(client, NAME) == expected
        set_champion(client, NAME, expected, action="rollback", why="it errs on ships")
    with pytest.raises(UserError, match="no earlier champion is recorded"):
        previous_champion(client, NAME)
    set_champion(client, NAME, 3, action="promote", why="ships again")
    assert previous_champion(client, NAME) == 1
    history = promotion_history(client, NAME)
    assert [(change.before, change.after) for change in history] == [(None, 1), (1, 2), (2, 3), (3, 2), (2, 1), (1, 3)]
    assert history[3].why == "it errs on ships"
    assert "@" in history[3].who
    assert history[3].when.endswith("+00:00")


def test_the_policy_does_not_promote_a_version_that_was_rolled_back(client: MlflowClient) -> None:
    register_candidate(client, 0.92)
    register_candidate(client, 0.93)
    set_champion(client, NAME, 1, action="rollback", why="it errs on ships")
    again = promote_if_better(client, 2, policy())
    assert (again.champion, again.reason) == (
        False,
        "it was rolled back (it errs on ships); override with `cifar-resnet registry promote 2`",
    )
    assert aliases(client) == {"champion": 1, "challenger": 2}
    set_champion(client, NAME, 2, action="promote", why="it does not")
    assert promote_if_better(client, 2, policy()).champion


def test_the_policy_does_not_undo_a_promotion_by_hand(client: MlflowClient) -> None:
    register_candidate(client, 0.92)
    register_candidate(client, 0.93)
    set_champion(client, NAME, 1, action="promote", why="a quarter of the size")
    again = promote_if_better(client, 2, policy())
    reason = "version 1 has replaced it (a quarter of the size); override with `cifar-resnet registry promote 2`"
    assert (again.champion, again.reason) == (False, reason)
    assert promote_if_better(client, 1, policy()).champion
    assert register_candidate(client, 0.95).champion  # another network
    assert not promote_if_better(client, 2, policy()).champion


def test_after_an_unrecorded_change_rollback_takes_the_last_recorded_champion(client: MlflowClient) -> None:
    for accuracy in (0.92, 0.93):
        register_candidate(client, accuracy)
    client.set_registered_model_alias(NAME, "champion", str(add_version(client, correct_mask(0.5))))
    assert previous_champion(client, NAME) == 2


def test_rollback_skips_a_deleted_version(client: MlflowClient) -> None:
    for accuracy in (0.92, 0.93, 0.94):
        register_candidate(client, accuracy)
    client.delete_model_version(NAME, "2")
    assert previous_champion(client, NAME) == 1


def test_concurrent_registrations_run_one_after_another(client: MlflowClient, tmp_path: Path) -> None:
    running, most_running = 0, 0

    def register(accuracy: float) -> None:
        nonlocal running, most_running
        with registry_lock(client, tmp_path):
            running += 1
            most_running = max(most_running, running)
            register_candidate(client, accuracy)
            time.sleep(0.05)
            running -= 1

    threads = [threading.Thread(target=register, args=(accuracy,)) for accuracy in (0.95, 0.92, 0.94, 0.93)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most_running == 1
    champion = get_champion(client, NAME)
    assert champion is not None
    assert float(champion.tags["accuracy"]) == 0.95
    history = promotion_history(client, NAME)
    assert [change.before for change in history] == [None, *(change.after for change in history[:-1])]
    assert history[-1].after == int(champion.version)


def test_a_lock_that_stays_held_is_reported(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_client, "LOCK_SECONDS", 0.1)
    with (
        registry_lock(client, tmp_path),
        pytest.raises(UserError, match=r"mlflow\.db\.lock: another process"),
        registry_lock(client, tmp_path),
    ):
        pass


def test_a_champion_set_elsewhere_at_the_same_time_is_reported(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_candidate(client, 0.93)

    def set_and_lose(client: MlflowClient, name: str, version: int, **options: object) -> None:
        set_champion(client, name, version, **options)  # type: ignore[arg-type]
        client.set_registered_model_alias(name, "champion", "1")

    monkeypatch.setattr(promotion, "set_champion", set_and_lose)
    late = register_candidate(client, 0.94)
    assert (late.champion, late.reason) == (False, "version 1 took the alias at the same time")
