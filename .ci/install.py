"""Install extras of this project into .venv: `.venv/bin/python .ci/install.py train,test`. The Makefile runs this.

uv installs, with parallel downloads; pip installs where uv cannot be used. The settings of pip (its
files and PIP_ variables: indexes, certificates, proxy) also hold for uv. The user's variables for uv take precedence.
"""

import ast
import os
import subprocess
import sys
import time

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
UV = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
CONSTRAINT = ["--constraint", "constraints.txt"]
PRECEDENCE = ("global", "install", ":env:")  # sections of pip's configuration; the last one wins
VARIABLES = {  # pip's option -> uv's variable and what separates its values
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "client-cert": ("SSL_CLIENT_CERT", " "),
    "proxy": ("ALL_PROXY", " "),
}


def pip_settings() -> dict[str, str]:
    """Option of pip -> its value, from pip's files and environment variables."""
    lines = subprocess.run([*PIP, "config", "list"], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    settings = dict[str, str]()
    for section in PRECEDENCE:
        for line in lines:
            if line.startswith(f"{section}."):
                name, _, value = line.removeprefix(f"{section}.").partition("=")
                settings[name] = ast.literal_eval(value)
    return settings


def uv_environment(settings: dict[str, str]) -> dict[str, str]:
    """The environment of uv with pip's settings. As pip does, uv compares the versions of all indexes."""
    variables = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for name, (variable, separator) in VARIABLES.items():
        if name in settings:
            variables[variable] = separator.join(settings[name].split())
    return variables | os.environ


def uv_options(settings: dict[str, str]) -> list[str]:
    options = [] if sys.stderr.isatty() else ["--quiet"]
    if settings.get("no-index") in ("1", "true", "yes", "on"):
        options.append("--no-index")
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):  # otherwise each program compiles what it imports at its first start
        options.append("--compile-bytecode")
    return options


def install(requirement: str) -> str:
    """Install this project with its extras; returns the name of the installer."""
    settings = pip_settings()
    options = [*CONSTRAINT, "--editable", requirement]
    if subprocess.run([*PIP, "install", "-qq", *CONSTRAINT, "uv"], check=False).returncode == 0:
        command = [*UV, *uv_options(settings), *options]
        if subprocess.run(command, env=uv_environment(settings), check=False).returncode == 0:
            return "uv"
    print("uv cannot be used here: installing with pip, which takes longer", flush=True)
    subprocess.run([*PIP, "install", "-qq", *options], check=True)
    return "pip"


def main() -> None:
    start = time.monotonic()
    try:
        installer = install(f".[{sys.argv[1]}]")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again")
    print(f"installed with {installer} in {time.monotonic() - start:.0f} s")


main()
