from pathlib import Path

from cifar_resnet import registry, tracking


def test_a_model_that_another_machine_registered_first_keeps_that_version(tmp_path: Path) -> None:
    client = tracking.connect(tmp_path)
    client.create_registered_model("model")
    tags = {"model": "a", "test_data": "t"}
    others = ({**tags, "model": "b"}, tags, {**tags, "test_data": "u"}, tags)
    created = [client.create_model_version("model", source="/nowhere", tags=each) for each in others]
    assert registry.keep_one(client, "model", tags, created[3]) == 2
    assert [int(each.version) for each in registry.versions(client, "model", tags)] == [2]
    assert len(client.search_model_versions("name = 'model'")) == 3
    assert registry.keep_one(client, "model", tags, created[1]) == 2
