from pathlib import Path

import mlflow
import numpy as np
import pytest

from cifar_resnet.registry.versions import delete_duplicates, log_model, versions_of_model
from cifar_resnet.tracking.client import connect, create_run
from cifar_resnet.tracking.run import Run


def test_a_model_that_another_machine_registered_first_keeps_that_version(tmp_path: Path) -> None:
    client = connect(tmp_path)
    client.create_registered_model("model")
    tags = {"model": "a", "test_data": "t"}
    others = ({**tags, "model": "b"}, tags, {**tags, "test_data": "u"}, tags)
    created = [client.create_model_version("model", source="/nowhere", tags=each) for each in others]
    assert delete_duplicates(client, "model", tags, created[3]) == 2
    assert [int(each.version) for each in versions_of_model(client, "model", tags)] == [2]
    assert len(client.search_model_versions("name = 'model'")) == 3
    assert delete_duplicates(client, "model", tags, created[1]) == 2


def test_a_registration_that_is_interrupted_leaves_the_run_as_finished_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(tmp_path)
    run_id = create_run(client, "trained", {})
    client.set_terminated(run_id, "FINISHED", 1_700_000_000_000)

    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mlflow.pyfunc, "log_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        log_model(Run(client, run_id), tmp_path, np.zeros((1, 32, 32, 3), np.uint8))
    after = client.get_run(run_id).info
    assert (after.status, after.end_time) == ("FINISHED", 1_700_000_000_000)
