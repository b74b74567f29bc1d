"""A training in a process of its own, which a test can kill."""

import csv
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, write_params
from mlflow import MlflowClient
from mlflow.entities import Run

from cifar_resnet.tracking.client import connect, experiment_id

EPOCHS = 5
Results = tuple[bytes, list[dict[str, str]]]


class Training:
    """A project folder with the tiny data."""

    def __init__(self, root: Path, prepared: Path, **sections: dict[str, object]) -> None:
        self.root = root
        (root / "data").mkdir(parents=True)
        (root / "data/prepared").symlink_to(prepared)
        train = {"epochs": EPOCHS, **sections.pop("train", {})}
        write_params(root, train=train, **sections)

    def start(self, *wrapper: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "DVC_ROOT": str(self.root)}
        command = [*wrapper, sys.executable, str(ROOT / "stages/train.py")]
        return subprocess.Popen(
            command, cwd=self.root, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True, bufsize=1
        )

    def finish(self) -> str:
        """Run to the end; returns the output."""
        process = self.start()
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        return output

    @property
    def state_folder(self) -> Path:
        (folder,) = (self.root / "data/scratch").iterdir()
        return folder

    def results(self) -> Results:
        """The weights, and the history without the measured times."""
        with (self.root / "data/model/history.csv").open(newline="") as stream:
            rows = [
                {key: value for key, value in row.items() if key not in {"seconds", "images_per_second"}}
                for row in csv.DictReader(stream)
            ]
        return (self.root / "data/model/model.safetensors").read_bytes(), rows

    def mlflow_runs(self) -> tuple[MlflowClient, list[Run]]:
        """A client, and this project's runs."""
        client = connect(self.root)
        return client, client.search_runs([experiment_id(client)])

    def check(self, expected: Results) -> None:
        """Check that results are the same, that MLflow's run has every epoch once, and that no state is left."""
        assert self.results() == expected
        assert not list((self.root / "data/scratch").iterdir())
        self.check_run(EPOCHS)

    def check_run(self, epochs: int) -> None:
        """Check that MLflow has one run, finished, with every epoch once."""
        client, runs = self.mlflow_runs()
        assert [run.info.status for run in runs] == ["FINISHED"]
        steps = [metric.step for metric in client.get_metric_history(runs[0].info.run_id, "train_loss")]
        assert steps == list(range(1, epochs + 1))


def wait_for(process: "subprocess.Popen[str]", pattern: str) -> str:
    """Read the process's output until a line matches; returns that line."""
    assert process.stdout is not None
    for line in process.stdout:
        if re.search(pattern, line):
            return line
    raise AssertionError(f"the process ended without printing {pattern}")


def kill(process: "subprocess.Popen[str]", with_signal: int = signal.SIGKILL) -> str:
    """Send a signal; returns the rest of the output."""
    process.send_signal(with_signal)
    output, _ = process.communicate(timeout=60)
    return output
