"""`cifar-resnet ui` with a real server: it prints addresses that answer, and Ctrl-C ends it."""

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT, write_params

pytestmark = pytest.mark.services


@pytest.mark.parametrize("uri", [None, "sqlite:///other folder/runs.db"])
def test_the_printed_addresses_answer_and_ctrl_c_ends_the_server(tmp_path: Path, uri: str | None) -> None:
    write_params(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")} | ({"MLFLOW_TRACKING_URI": uri} if uri else {})
    command = [sys.executable, "-m", "cifar_resnet", "ui"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        starting, server, runs = (process.stdout.readline() for _ in range(3))
        address = server.split()[3]
        assert starting.startswith("MLflow is starting")
        assert server == f"MLflow runs at {address} until Ctrl-C\n"
        port = address.rsplit(":", 1)[1]
        assert runs.startswith(f"runs: http://mlflow.localhost:{port}/#/experiments/")
        page = urllib.request.Request(address, headers={"Host": f"mlflow.localhost:{port}"})
        with urllib.request.urlopen(page, timeout=60) as response:
            assert b"<title>MLflow</title>" in response.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address, timeout=5)
    assert (tmp_path / (uri.removeprefix("sqlite:///") if uri else "mlflow.db")).exists()
