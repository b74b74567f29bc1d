"""The pages against the project: links, the reference of params.yaml, every command, preset and key that they name."""

import importlib.util
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT
from dvc.cli import parse_args

from cifar_resnet.cli.main import COMMANDS, make_parser
from cifar_resnet.params.file import Params, parse_yaml

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHER_PAGES = [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/LOG.md"]
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
SECTIONS = parse_yaml((ROOT / "params.yaml").read_text(encoding="utf-8"))
SEARCH_ONLY = {"model.layers"}  # the number of residual layers, a key of search.space
MISSPELLED = {"train.epoch"}  # in an example of an error


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


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings; the second equal one ends in -1."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text_of(page)), re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings]
    seen = Counter[str]()
    anchors = set()
    for slug in slugs:
        anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return anchors


def commands_of(page: Path, program: str) -> Iterator[list[str]]:
    """The arguments of each call of a program, in code blocks (after an optional `$ `) and in inline code."""
    text = text_of(page).replace("\\\n", " ")
    lines = [line for block in FENCED.findall(text) for line in block.splitlines()[1:-1]]
    lines += re.findall(r"`([^`\n]+)`", FENCED.sub("", text))
    for line in lines:
        for command in line.removeprefix("$ ").split(" && "):
            if re.match(rf"(?:[A-Z_]+=\S+ )*{program} ", command):
                words = shlex.split(command, comments=True)
                yield words[words.index(program) + 1 :]


@pytest.mark.parametrize("page", PAGES + OTHER_PAGES, ids=lambda page: page.name)
def test_the_target_of_every_relative_link_exists(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text_of(page)))
    for link in (link for link in links if not link.startswith(("http://", "https://", "mailto:"))):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_dvc_command_that_a_page_names_is_accepted(page: Path) -> None:
    for arguments in commands_of(page, "dvc"):
        parse_args(arguments)


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
    assert set(re.findall(r"(?:`|^|&& |\$ )make (?:-n )?([a-z][a-z-]*)", text_of(page), re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_preset_that_a_page_names_exists(page: Path) -> None:
    presets = {path.stem for path in (ROOT / "presets").glob("*.yaml")}
    assert set(re.findall(r"(?:presets/|make preset NAME=)(\w+)", text_of(page))) <= presets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_cifar_resnet_that_a_page_names_is_accepted(page: Path) -> None:
    names = {name for name, *_ in COMMANDS}
    for arguments in commands_of(page, "cifar-resnet"):
        if len(arguments) == 1:  # a page can name a command without its arguments
            assert arguments[0] in names or arguments[0].startswith("--")
        else:
            make_parser().parse_args(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_that_a_page_names_exists(page: Path) -> None:
    names = set(re.findall(rf"(?<![\w/.])(?:{'|'.join(SECTIONS)})\.\w+(?![\w/(])", text_of(page)))
    files = {name for name in names if name.endswith((".json", ".safetensors", ".db", ".onnx"))}
    known = {f"{section}.{key}" for section, keys in SECTIONS.items() for key in keys} | SEARCH_ONLY | MISSPELLED
    assert names - files <= known


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/quickstart.md"], ids=lambda page: page.name)
def test_the_first_pages_compare_only_networks_that_a_clone_has(page: Path) -> None:
    """The logits of HEAD are not in Git."""
    names = set(re.findall(r"\b[AB]=(\S+?)(?=[`\s])", text_of(page)))
    created = set(re.findall(r"--name (\w+)|make (quick)", text_of(page)))
    assert names
    assert names <= {"pretrained", "workspace", *(name for pair in created for name in pair)}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "params.yaml"], ids=lambda page: page.name)
def test_every_address_of_postgresql_names_the_driver_that_is_tested(page: Path) -> None:
    """SQLAlchemy 2.1 takes postgresql:// for psycopg 3, which no extra installs."""
    assert set(re.findall(r"postgresql\S*?://", text_of(page).replace(r"postgresql(\+\w+)?://", ""))) <= {
        "postgresql+psycopg2://"
    }
