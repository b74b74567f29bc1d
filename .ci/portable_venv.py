"""Remove the project's path from .venv, so that the project can be moved or copied with it. `make setup` runs this.

Scripts find Python in their own folder, `activate` finds .venv from its own path, and the link to src/ is relative. All
programs of .venv, for example dvc and mlflow, start with the variables of cifar_resnet/environment_variables.py.
"""

import re
import sys
import sysconfig
from os.path import relpath
from pathlib import Path

VENV = Path(sys.prefix)
SHEBANG = re.compile(r"#!/.*python.*\n|#!/bin/sh\n'''exec' .*\n' '''\n")
RELATIVE_SHEBANG = """\
#!/bin/sh
'''exec' "$(dirname -- "$(realpath -- "$0")")/python" "$0" "$@"
' '''
"""
FIND_VENV = """\
if [ -n "${BASH_VERSION:-}${ZSH_VERSION:-}" ] ; then
    eval 'VIRTUAL_ENV="$(dirname -- "$(dirname -- "$(realpath -- "${BASH_SOURCE:-${(%):-%x}}")")")"'
fi
"""
FISH = re.compile('set -gx VIRTUAL_ENV ".*"')
FISH_FIND_VENV = "set -gx VIRTUAL_ENV (dirname (dirname (realpath (status filename))))"
SET_VARIABLES = (
    "import importlib.machinery, os, sys; name = 'environment_variables'; "
    "file = os.path.join(os.path.dirname(sys.prefix), f'src/cifar_resnet/{name}.py'); "
    "os.path.exists(file) and exec(importlib.machinery.SourceFileLoader(name, file).get_code(name), {})"
)


def replace(path: Path, text: str) -> None:
    """Write a new file: a copy made with hard links does not change."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(path.stat().st_mode)
    temporary.replace(path)


def main() -> None:
    if VENV.is_symlink():  # src/ is not beside the folder that the link points to
        return
    for script in Path(sysconfig.get_path("scripts")).iterdir():
        content = b"" if script.is_symlink() else script.read_bytes()
        if content.startswith(b"#!") and (match := SHEBANG.match(text := content.decode())):
            replace(script, RELATIVE_SHEBANG + text[match.end() :])
    activate = VENV / "bin/activate"
    text, marker = activate.read_text(encoding="utf-8"), '_OLD_VIRTUAL_PATH="$PATH"\n'
    if FIND_VENV not in text:
        replace(activate, text.replace(marker, FIND_VENV + marker))
    fish = VENV / "bin/activate.fish"
    replace(fish, FISH.sub(FISH_FIND_VENV, fish.read_text(encoding="utf-8")))
    packages = Path(sysconfig.get_path("purelib"))
    for link in packages.glob("__editable__.cifar_resnet-*.pth"):
        replace(link, f"{relpath(VENV.parent / 'src', packages)}\n{SET_VARIABLES}\n")


main()
