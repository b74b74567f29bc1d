from types import SimpleNamespace
from typing import Any

from cifar_resnet.cli.demo import MAX_CLASSES, classes_text
from cifar_resnet.inference.uncertainty import Reliability


def loaded(**classes: list[str]) -> Any:
    """Models by name, of which the text needs name and classes only."""
    return {name: (SimpleNamespace(name=name, classes=names), Reliability([])) for name, names in classes.items()}


def test_the_introduction_names_the_classes_once_if_all_models_know_the_same() -> None:
    assert classes_text(loaded(champion=["cat", "dog"], pretrained=["cat", "dog"])) == "cat, dog"


def test_the_introduction_names_the_models_of_each_list_of_classes() -> None:
    models = loaded(champion=["owl", "cow"], challenger=["owl", "cow"], pretrained=["cat", "dog"])
    assert classes_text(models) == "owl, cow (champion, challenger); cat, dog (pretrained)"


def test_a_long_list_of_classes_is_cut() -> None:
    text = classes_text(loaded(champion=[str(number) for number in range(100)]))
    assert text == ", ".join(str(number) for number in range(MAX_CLASSES)) + " ..."
