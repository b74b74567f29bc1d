"""Helpers that start real servers and send requests to a served model."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_SECONDS = 180  # a server that imports torch on a busy machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def run_server(command: list[str | Path], log: Path, ready: list[str | Path] | str, **options: Any) -> Iterator[None]:
    """Run a server in its own process group until the block ends.

    Args:
        ready: a URL or command; the block starts when it succeeds.
        options: of `subprocess.Popen`.
    """
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True, **options)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_ready(ready):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def is_ready(ready: list[str | Path] | str) -> bool:
    if not isinstance(ready, str):
        return subprocess.run(ready, capture_output=True, check=False).returncode == 0
    try:
        with urllib.request.urlopen(ready, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def venv_program(name: str) -> Path:
    return Path(sys.executable).with_name(name)


def mlflow_server_command(port: int, *options: str) -> list[str | Path]:
    address = ["--host", "127.0.0.1", "--port", str(port)]
    return [venv_program("mlflow"), "server", *address, "--workers", "1", *options]


def post(url: str, body: bytes, content_type: str = "application/json") -> tuple[int, str]:
    """(status, text) of the response of a served model."""
    request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def post_inputs(url: str, inputs: object) -> tuple[int, str]:
    return post(url, json.dumps({"inputs": inputs}).encode())
