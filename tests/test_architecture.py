"""The rules of the house: layers, doors, and dvc.yaml against what the code imports and reads."""

import ast
import hashlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from cifar_resnet import registry

SOURCE = ROOT / "src/cifar_resnet"
LAYERS = [
    {"errors"},
    {"files", "progress", "checkpoint", "distributed", "convolution", "mirrored", "revisions"},
    {"params", "images", "records", "hardware", "distortion"},
    {"metrics", "significance", "calibration", "speed", "cifar10", "split", "augment", "resnet", "lineage", "runs"},
    {"optimizer", "batches", "product", "inputs", "inference", "corruptions", "figures", "space", "tracking"},
    {"serving", "training", "champion", "evaluation", "predictions", "comparison", "search"},
    {"registry", "recovery", "models", "rebuild", "trials", "winners"},
    {"searching"},
    {"__main__"},
]
DOORS = {
    "yaml": {"params"},
    "pydantic": {"params"},
    "mlflow": {"tracking", "runs", "rebuild", "registry", "serving", "champion", "models"},
    "filelock": {"champion", "tracking", "search"},
    "matplotlib": {"figures"},
    "optuna": {"space", "search"},
    "sqlalchemy": {"search"},
    "sklearn": {"split", "metrics"},
    "scipy": {"metrics", "calibration", "significance"},
    "safetensors": {"product"},
    "dvc": {"revisions"},
    "rich": {"progress"},
    "torchvision": {"distortion"},
    "torch.distributed": {"distributed"},
    "PIL": {"cifar10", "inputs", "corruptions"},
}
# They cannot change an output: messages, bars, MLflow's view, the check of values that DVC itself tracks, and
# crash recovery, which ends where an unbroken training ends.
WITHOUT_EFFECT = {"errors", "progress", "tracking", "runs", "lineage", "params", "checkpoint", "recovery"}
SECTIONS_WITHOUT_EFFECT = {"train": {"checkpoint", "tracking"}, "evaluate": {"tracking"}}
STAGES = ("download", "preprocess", "train", "evaluate", "register", "predict")
FOLDERS = dict(zip(STAGES, ("raw", "prepared", "model", "evaluation", "registry", "predictions"), strict=True))
PIPELINE: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
UNCACHED = {
    path
    for stage in PIPELINE.values()
    for out in stage["outs"] + stage.get("metrics", [])
    if isinstance(out, dict)
    for path in out
}
PARAMS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, path
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported(path) if name.startswith("cifar_resnet.")}


def reached(path: Path) -> set[str]:
    """All modules of ours that a file needs, directly or not."""
    todo, seen = ours(path), set[str]()
    while todo:
        module = todo.pop()
        seen.add(module)
        todo |= ours(SOURCE / f"{module}.py") - seen
    return seen


def names(entries: list[str | dict[str, Any]]) -> set[str]:
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def test_every_module_has_its_layer() -> None:
    assert set().union(*LAYERS) == {path.stem for path in SOURCE.glob("*.py")} - {"__init__"}


def test_a_module_imports_only_from_layers_above() -> None:
    above: set[str] = set()
    for layer in LAYERS:
        for module in layer:
            assert ours(SOURCE / f"{module}.py") <= above, module
        above |= layer


def test_every_outside_library_has_its_doors() -> None:
    for path in (*SOURCE.glob("*.py"), *(ROOT / "stages").glob("*.py")):
        for name in imported(path):
            for library, doors in DOORS.items():
                if f"{name}.".startswith(f"{library}."):
                    assert path.stem in doors, f"{path.name} imports {name}"


def test_the_registered_model_asks_for_the_packages_that_its_code_imports() -> None:
    packages = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml"}
    paths = [SOURCE / f"{module}.py" for module in {"serving"} | reached(SOURCE / "serving.py")]
    used = {name.split(".")[0] for path in paths for name in imported(path)}
    outside = used - sys.stdlib_module_names - {"cifar_resnet"}
    assert set(registry.NEEDED) == {packages.get(name, name) for name in outside}


def test_stages_do_not_import_each_other() -> None:
    for name in STAGES:
        assert not {other.split(".")[0] for other in imported(ROOT / f"stages/{name}.py")} & {*STAGES, "stages"}


@pytest.mark.parametrize("name", STAGES)
def test_dvc_lists_the_code_that_a_stage_runs(name: str) -> None:
    script = ROOT / f"stages/{name}.py"
    code = {dep for dep in names(PIPELINE[name]["deps"]) if dep.endswith(".py")}
    wanted = {f"src/cifar_resnet/{module}.py" for module in reached(script) - WITHOUT_EFFECT}
    assert code == wanted | {f"stages/{name}.py"}


@pytest.mark.parametrize("name", STAGES)
def test_dvc_lists_the_sections_that_a_stage_reads(name: str) -> None:
    text = (ROOT / f"stages/{name}.py").read_text(encoding="utf-8")
    read = {section.rstrip("_") for section in re.findall(r'params\.load\(root / "params\.yaml"\)\.(\w+)', text)}
    read |= {section.rstrip("_") for section in re.findall(r"\bvalues\.(\w+)", text)} & set(PARAMS)
    assert set(PIPELINE[name]["params"]) == read - SECTIONS_WITHOUT_EFFECT.get(name, set())


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_writes_its_own_folder_only(name: str) -> None:
    outs = names(PIPELINE[name]["outs"] + PIPELINE[name].get("metrics", []))
    assert {"/".join(Path(out).parts[:2]) for out in outs} == {f"data/{FOLDERS[name]}"}


def test_only_evaluate_reads_test_labels_and_training_sees_no_test_image() -> None:
    for name in STAGES:
        deps = names(PIPELINE[name]["deps"])
        assert ("data/prepared/test_labels.npy" in deps) == (name == "evaluate")
        assert not (name == "train" and any("test" in dep or "raw" in dep for dep in deps))


def test_dvc_lock_is_that_of_the_committed_code_and_params() -> None:
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    assert set(lock) == set(STAGES)
    for name, stage in lock.items():
        assert stage["cmd"] == PIPELINE[name]["cmd"]
        assert stage["params"]["params.yaml"] == {section: PARAMS[section] for section in PIPELINE[name]["params"]}
        for entry in stage["deps"] + stage["outs"]:
            path = ROOT / entry["path"]
            if path.suffix == ".py" or entry["path"] in UNCACHED:
                assert entry["md5"] == hashlib.md5(path.read_bytes()).hexdigest(), f"{name}: {entry['path']}"
        listed = {entry["path"] for entry in stage["deps"]}
        assert listed == {
            dep.replace("${predict.input}", PARAMS["predict"]["input"]) for dep in names(PIPELINE[name]["deps"])
        }
