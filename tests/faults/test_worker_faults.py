"""Kills processes of a distributed training, on one machine and on two that network namespaces simulate."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import pytest
from conftest import ROOT
from training_process import Training, kill, wait_for

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def prepared(project: Path) -> Path:
    return project / "data/prepared"


def test_resumes_after_sigkill_of_one_of_two_workers(prepared: Path, tmp_path: Path) -> None:
    reference = Training(tmp_path / "reference", prepared, train={"processes": 2})
    reference.finish()
    training = Training(tmp_path / "project", prepared, train={"processes": 2})
    process = training.start()
    wait_for(process, r"epoch 2/")
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(workers.stdout.split()[-1]), signal.SIGKILL)
    start = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - start < 60
    assert process.returncode == 1
    assert re.search(r"train: worker \d of 2 was killed by signal 9; run the same command again", output), output
    assert "train: resumed after epoch" in training.finish()
    training.check(reference.results())


def test_resumes_after_sigterm_of_two_workers(prepared: Path, tmp_path: Path) -> None:
    reference = Training(tmp_path / "reference", prepared, train={"processes": 2})
    reference.finish()
    training = Training(tmp_path / "project", prepared, train={"processes": 2})
    process = training.start()
    wait_for(process, r"epoch 2/")
    output = kill(process, signal.SIGTERM)
    assert process.returncode == 1, output
    assert "is saved; run the same command again to continue" in output
    assert "train: resumed after epoch" in training.finish()
    training.check(reference.results())


class Network:
    """Two network namespaces connected by a virtual cable, which simulate two machines."""

    def __init__(self) -> None:
        self.addresses = {"one": "10.77.0.1", "two": "10.77.0.2"}

    def __enter__(self) -> Self:
        commands = ["ip link add one netns one type veth peer name two netns two"]
        for name, address in self.addresses.items():
            commands.insert(0, f"ip netns add {name}")
            commands.append(f"ip -n {name} addr add {address}/24 dev {name}")
            commands += [f"ip -n {name} link set {device} up" for device in (name, "lo")]
        for command in commands:
            if subprocess.run(command.split(), check=False, capture_output=True).returncode:
                self.__exit__()
                pytest.skip("creating network namespaces is not permitted on this machine")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.addresses:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def power_off(self, name: str) -> None:
        """Kill all processes of a machine."""
        result = subprocess.run(["ip", "netns", "pids", name], check=True, capture_output=True, text=True)
        for process in result.stdout.split():
            os.kill(int(process), signal.SIGKILL)

    def torchrun(self, name: str, training: Training, port: int) -> "subprocess.Popen[str]":
        """Start the part of a training that runs on one machine."""
        options = (
            f"--nnodes=2 --nproc-per-node=1 --rdzv-id=cifar --rdzv-backend=c10d "
            f"--rdzv-endpoint={self.addresses['one']}:{port} --local-addr={self.addresses[name]} "
            f"--rdzv-conf=is_host={int(name == 'one')}"
        ).split()
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", *options]
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT / "src"), "DVC_ROOT": str(training.root), "GLOO_SOCKET_IFNAME": name,
        }  # fmt: skip
        return subprocess.Popen(
            [*command, str(ROOT / "stages/train.py")], cwd=training.root, env=environment, stdout=-1,
            stderr=subprocess.STDOUT, text=True, bufsize=1,
        )  # fmt: skip


def test_resumes_after_one_of_two_machines_is_killed(prepared: Path, tmp_path: Path) -> None:
    training = Training(tmp_path / "project", prepared, train={"epochs": 40})
    with Network() as network:
        nodes = {name: network.torchrun(name, training, port=29577) for name in network.addresses}
        while not list(training.root.glob("data/scratch/*/state.previous")):
            assert all(node.poll() is None for node in nodes.values())
            time.sleep(0.01)
        network.power_off("two")
        output, _ = nodes["one"].communicate(timeout=60)
        assert nodes["one"].returncode == 1
        assert "another process of this training is lost" in output
        nodes = {name: network.torchrun(name, training, port=29578) for name in network.addresses}
        outputs = {name: node.communicate(timeout=240)[0] for name, node in nodes.items()}
    assert [node.returncode for node in nodes.values()] == [0, 0], outputs
    assert "train: resumed after epoch" in "".join(outputs.values())
    training.check_run(40)
