from pathlib import Path

import mlflow
import numpy as np
import pytest

from cifar_resnet.registry.versions import delete_duplicates, log_model, versions_of_model
from cifar_resnet.tracking.client import connect, create_run
from cifar_resnet.tracking.run import Run


def test_of_versions_registered_at_the_same_time_the_oldest_is_kept(tmp_path: Path) -> None:
    client = connect(tmp_path)
    client.create_registered_model("model")
    tags = {"model": "a", "test_data": "t"}
    tag_sets = ({**tags, "model": "b"}, tags, {**tags, "test_data": "u"}, tags)
    created = [client.create_model_version("model", source="/nowhere", tags=tag_set) for tag_set in tag_sets]
    assert delete_duplicates(client, "model", tags, created[3]) == 2
    assert [int(version.version) for version in versions_of_model(client, "model", tags)] == [2]
    assert len(client.search_model_versions("name = 'model'")) == 3
    assert delete_duplicates(client, "model", tags, created[1]) == 2


def test_an_interrupted_registration_keeps_status_and_end_time_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(tmp_path)
    run_id = create_run(client, "trained", {})
    client.set_terminated(run_id, "FINISHED", 1_700_000_000_000)

    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mlflow.pyfunc, "log_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        log_model(Run(client, run_id), tmp_path, np.zeros((1, 32, 32, 3), np.uint8))
    info = client.get_run(run_id).info
    assert (info.status, info.end_time) == ("FINISHED", 1_700_000_000_000)
