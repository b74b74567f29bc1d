"""The installer of `make setup`: uv with the settings of pip, or pip."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

RECORD = """\
import os, sys
with open("calls", "a") as calls:
    variables = {name: value for name, value in os.environ.items() if name.startswith("UV_")}
    print(__package__, *sys.argv[1:], variables if __package__ == "uv" else "", file=calls)
"""
CONFIGURE = r"""
if "config" in sys.argv:
    print("global.index-url='https://a/simple'\nglobal.extra-index-url='https://b'")
    print(":env:.extra-index-url='https://c https://d'\ninstall.find-links='\\n/wheels\\n/more'\n:env:.no-index='1'")
"""


def run_install(folder: Path, *, uv_code: int) -> tuple[str, list[str]]:
    """Run .ci/install.py with a pip and a uv that record their arguments; returns its output and the calls."""
    for name, end in (("pip", CONFIGURE), ("uv", f"sys.exit({uv_code})")):
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
        (folder / name / "__main__.py").write_text(RECORD + end)
    variables = {"PYTHONPATH": str(folder), "UV_DEFAULT_INDEX": "https://mine", "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, ROOT / ".ci/install.py", "train,test"]
    result = subprocess.run(
        command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout, [line.rstrip() for line in (folder / "calls").read_text().splitlines()]


def test_uv_installs_with_the_settings_of_pip(tmp_path: Path) -> None:
    output, calls = run_install(tmp_path, uv_code=0)
    assert output.startswith("installed with uv in ")
    command, _, variables = calls[-1].partition(" {")
    options = "--quiet --no-index --constraint constraints.txt --editable .[train,test]"
    assert command == f"uv pip install --python {sys.executable} {options}"
    assert "'UV_DEFAULT_INDEX': 'https://mine'" in variables
    assert "'UV_INDEX': 'https://c https://d'" in variables
    assert "'UV_FIND_LINKS': '/wheels,/more'" in variables


def test_pip_installs_where_uv_fails(tmp_path: Path) -> None:
    output, calls = run_install(tmp_path, uv_code=2)
    first, second = output.splitlines()
    assert first == "uv cannot be used here: installing with pip, which takes longer"
    assert second.startswith("installed with pip in ")
    pip = "pip --disable-pip-version-check install -qq --constraint constraints.txt"
    assert calls[-1] == f"{pip} --editable .[train,test]"


def test_the_error_of_a_broken_configuration_is_shown(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text("[global\n")
    command = [sys.executable, ROOT / ".ci/install.py", "train"]
    environment = os.environ | {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf")}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "pip.conf" in result.stderr
