from pathlib import Path

import pytest
from mlflow import MlflowClient

from cifar_resnet import registry, tracking

NAME = "model"


def candidate(client: MlflowClient, accuracy: float, test_data: str = "same") -> registry.Decision:
    version = int(client.create_model_version(NAME, source="/nowhere").version)
    client.set_model_version_tag(NAME, str(version), "accuracy", str(accuracy))
    client.set_model_version_tag(NAME, str(version), "test_data", test_data)
    return registry.decide(client, name=NAME, version=version, run_id="r", accuracy=accuracy, test_data=test_data)


def champion(client: MlflowClient) -> int:
    found = registry.champion(client, NAME)
    assert found is not None
    return int(found.version)


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    found = tracking.connect(tmp_path)
    found.create_registered_model(NAME)
    return found


def test_the_champion_is_the_first_and_then_whoever_beats_it(client: MlflowClient) -> None:
    assert registry.champion(client, NAME) is None
    first = candidate(client, 0.93)
    assert (first.champion, first.reason) == (True, "there was no champion")
    worse, equal = candidate(client, 0.92), candidate(client, 0.93)
    assert not worse.champion
    assert not equal.champion
    assert champion(client) == 1
    better = candidate(client, 0.94)
    assert (better.champion, better.previous_champion, better.previous_accuracy) == (True, 1, 0.93)
    assert better.reason == "accuracy 0.9400 is above version 1's 0.9300"
    assert champion(client) == 4
    assert client.get_model_version(NAME, "2").tags["decision_reason"] == worse.reason


def test_accuracies_on_other_test_data_are_not_compared(client: MlflowClient) -> None:
    candidate(client, 0.93)
    other = candidate(client, 0.99, test_data="other")
    assert (other.champion, other.reason) == (False, "version 1 stays: it was measured on other test data")
