"""The pages against the project: the reference of params.yaml, and every command, preset and key that they name."""

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

from cifar_resnet.cli.main import make_parser
from cifar_resnet.params.file import Params, parse_yaml

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SECTIONS = parse_yaml((ROOT / "params.yaml").read_text(encoding="utf-8"))
SEARCH_ONLY = {"model.layers"}  # the number of residual layers, a key of search.space


def load_generator() -> ModuleType:
    """docs/params.py, which is not part of the package."""
    spec = importlib.util.spec_from_file_location("params_docs", ROOT / "docs/params.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_the_committed_schema_and_page_are_those_of_the_code() -> None:
    generator = load_generator()
    hint = "run `make params-docs`"
    assert generator.SCHEMA_FILE.read_text(encoding="utf-8") == generator.schema_text(), hint
    assert generator.PAGE_FILE.read_text(encoding="utf-8") == generator.page_text(), hint


def test_every_key_has_a_description() -> None:
    for name, section in Params.model_fields.items():
        assert section.annotation is not None
        assert section.annotation.__doc__, name
        for key, field in section.annotation.model_fields.items():
            assert field.description, f"{name}.{key}"


def test_the_first_line_of_params_yaml_names_the_schema() -> None:
    first = text_of(ROOT / "params.yaml").splitlines()[0]
    match = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert match is not None, first
    assert (ROOT / match[1]).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_that_a_page_names_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^|&& )make ([a-z-]+)", text_of(page), re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_preset_that_a_page_names_exists(page: Path) -> None:
    presets = {path.stem for path in (ROOT / "presets").glob("*.yaml")}
    assert set(re.findall(r"(?:presets/|make preset NAME=)(\w+)", text_of(page))) <= presets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_cifar_resnet_that_a_page_names_is_accepted(page: Path) -> None:
    for arguments in re.findall(r"(?:cifar-resnet|-m cifar_resnet) ([a-z][^`\n]*)", text_of(page)):
        make_parser().parse_args(shlex.split(arguments, comments=True))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_that_a_page_names_exists(page: Path) -> None:
    names = set(re.findall(rf"(?<![\w/.])(?:{'|'.join(SECTIONS)})\.\w+(?![\w/(])", text_of(page)))
    files = {name for name in names if name.endswith((".json", ".safetensors", ".db"))}
    known = {f"{section}.{key}" for section, keys in SECTIONS.items() for key in keys} | SEARCH_ONLY
    assert names - files <= known
