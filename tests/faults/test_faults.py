"""Real trainings, really killed, on real full and read-only file systems: each ends as the unbroken one, bit for bit.

Run by `make test-faults` (minutes); it prints how many faults were tried and survived.
"""

import csv
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from conftest import ROOT, write_params

from cifar_resnet.recovery.checkpoint import NEWEST, PREVIOUS
from cifar_resnet.tracking.client import EXPERIMENT, connect

pytestmark = pytest.mark.faults
EPOCHS = 5
EVERY_STEP = 1e-9  # minutes between two states
BIG = [64, 256, 256]  # channels whose state takes long enough to write to be hit meanwhile
tried: Counter[str] = Counter()
survived: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    yield
    with open(os.environ.get("FAULTS_TABLE", os.devnull), "a", encoding="utf-8") as stream:  # noqa: PTH123
        for fault, count in tried.items():
            print(f"| {fault} | {count} | {survived[fault]} |", file=stream)


class Training:
    """A project of its own on the tiny data."""

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

    def finish(self, *wrapper: str) -> str:
        """Run to the end; returns what it said."""
        process = self.start(*wrapper)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return said

    @property
    def scratch(self) -> Path:
        (folder,) = (self.root / "data/scratch").iterdir()
        return folder

    def results(self) -> tuple[bytes, list[dict[str, str]]]:
        """The weights, and the history but for its wall-clock columns."""
        with (self.root / "data/model/history.csv").open(newline="") as stream:
            rows = [
                {key: value for key, value in row.items() if key not in {"seconds", "images_per_second"}}
                for row in csv.DictReader(stream)
            ]
        return (self.root / "data/model/model.safetensors").read_bytes(), rows

    def check(self, unbroken: tuple[bytes, list[dict[str, str]]], runs: int = 1) -> None:
        """Same results, one finished MLflow run with every epoch once, nothing left behind."""
        assert self.results() == unbroken
        assert not list((self.root / "data/scratch").iterdir())
        client = connect(self.root)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id])
        assert [run.info.status for run in found] == ["FINISHED"] * runs
        steps = [metric.step for metric in client.get_metric_history(found[0].info.run_id, "train_loss")]
        assert steps == list(range(1, EPOCHS + 1))


def wait_for(process: "subprocess.Popen[str]", pattern: str) -> str:
    """Read what the process says until a line matches."""
    assert process.stdout is not None
    for line in process.stdout:
        if re.search(pattern, line):
            return line
    raise AssertionError(f"ended without saying {pattern}")


def kill(process: "subprocess.Popen[str]", with_signal: int = signal.SIGKILL) -> str:
    process.send_signal(with_signal)
    said, _ = process.communicate(timeout=60)
    return said


@pytest.fixture(scope="module")
def prepared(project: Path) -> Path:
    return project / "data/prepared"


@pytest.fixture(scope="module")
def unbroken(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[dict[str, str]]]:
    training = Training(tmp_path_factory.mktemp("unbroken"), prepared)
    training.finish()
    return training.results()


@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_sigkill_at_an_epochs_end(epoch: int, prepared: Path, unbroken: tuple, tmp_path: Path) -> None:
    tried["SIGKILL at an epoch's end"] += 1
    training = Training(tmp_path / "p", prepared)
    process = training.start()
    wait_for(process, rf"epoch {epoch}/{EPOCHS}")
    kill(process)
    training.finish()
    training.check(unbroken)
    survived["SIGKILL at an epoch's end"] += 1


@pytest.mark.parametrize("number", range(6))
def test_sigkill_within_an_epoch(number: int, prepared: Path, unbroken: tuple, tmp_path: Path) -> None:
    tried["SIGKILL within an epoch"] += 1
    training = Training(tmp_path / "p", prepared, checkpoint={"minutes": EVERY_STEP})
    process = training.start()
    wait_for(process, r"epoch 1/")
    time.sleep(random.Random(number).uniform(0, 0.4))
    kill(process)
    assert "going on after epoch" in training.finish()
    training.check(unbroken)
    survived["SIGKILL within an epoch"] += 1


@pytest.mark.parametrize("number", range(3))
def test_sigkill_while_the_state_is_written(number: int, prepared: Path, tmp_path: Path) -> None:
    tried["SIGKILL while the state is written"] += 1
    wide = {"channels": BIG, "blocks": [1] * 3, "kernels": [3] * 3, "skip_kernels": [3] * 3, "head_pool_kernel": 3}
    sections = {"model": wide, "train": {"epochs": 2}, "checkpoint": {"minutes": EVERY_STEP}}
    whole = Training(tmp_path / "whole", prepared, **sections)
    whole.finish()
    training = Training(tmp_path / "p", prepared, **sections)
    for _ in range(5):
        process = training.start()
        while not list(training.root.glob("data/scratch/*/state")):
            assert process.poll() is None
        while not (half := list(training.root.glob("data/scratch/*/state.[0-9]*"))):
            assert process.poll() is None
        kill(process)
        if half[0].exists():
            break
    assert half[0].exists(), "the kill never fell into a write"
    training.finish()
    assert training.results() == whole.results()
    survived["SIGKILL while the state is written"] += 1


def damage_truncated(folder: Path) -> None:
    os.truncate(folder / NEWEST, (folder / NEWEST).stat().st_size // 2)


def damage_flipped(folder: Path) -> None:
    content = bytearray((folder / NEWEST).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / NEWEST).write_bytes(content)


def damage_missing(folder: Path) -> None:
    (folder / NEWEST).unlink()


@pytest.mark.parametrize("damage", [damage_truncated, damage_flipped, damage_missing])
def test_a_damaged_newest_state(
    damage: Callable[[Path], None], prepared: Path, unbroken: tuple, tmp_path: Path
) -> None:
    fault = damage.__name__.replace("damage_", "newest state ")
    tried[fault] += 1
    training = Training(tmp_path / "p", prepared)
    process = training.start()
    wait_for(process, r"epoch 4/")
    kill(process)
    assert (training.scratch / PREVIOUS).exists()
    damage(training.scratch)
    said = training.finish()
    assert re.search(r"the saved state is (damaged|missing), so it is passed over", said)
    assert "going on after epoch" in said
    training.check(unbroken)
    survived[fault] += 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_and_terminate(number: signal.Signals, prepared: Path, unbroken: tuple, tmp_path: Path) -> None:
    tried[number.name] += 1
    training = Training(tmp_path / "p", prepared)
    process = training.start()
    wait_for(process, r"epoch 2/")
    said = kill(process, number)
    assert process.returncode == 1
    assert "is saved, and the same command goes on from there" in said
    client = connect(training.root)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["KILLED"]
    assert "going on after epoch" in training.finish()
    training.check(unbroken)
    survived[number.name] += 1


def small_disk(training: Training, options: str) -> list[str]:
    """A wrapper that gives a command a small file system at data/scratch, in a mount namespace of its own."""
    (training.root / "data/scratch").mkdir()
    mount = f"mount -t tmpfs -o {options} tmpfs '{training.root}/data/scratch' && exec \"$@\""
    wrapper = ["unshare", "--mount", "--map-root-user", "--user", "sh", "-c", mount, "sh"]
    if subprocess.run([*wrapper, "true"], check=False, capture_output=True).returncode:
        wrapper = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    if subprocess.run([*wrapper, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    return wrapper


@pytest.mark.parametrize(
    ("fault", "options", "reason"),
    [("full disk", "size=200k", "No space left on device"), ("read-only folder", "ro", "Read-only file system")],
)
def test_no_room_for_the_state(
    fault: str, options: str, reason: str, prepared: Path, unbroken: tuple, tmp_path: Path
) -> None:
    tried[fault] += 1
    training = Training(tmp_path / "p", prepared)
    process = training.start(*small_disk(training, options))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"cannot save the training's state ({reason})" in said
    assert "Traceback" not in said
    training.finish()
    training.check(unbroken)
    survived[fault] += 1


def test_a_disk_that_fills_up_keeps_the_states_it_has(prepared: Path, unbroken: tuple, tmp_path: Path) -> None:
    tried["disk fills up in the middle"] += 1
    training = Training(tmp_path / "p", prepared)
    wrapper = small_disk(training, "size=1m")
    script = (
        '"$@" > out 2>&1 & while ! [ -e data/scratch/*/state.previous ]; do :; done; '
        "dd if=/dev/zero of=data/scratch/filler bs=4k 2>/dev/null; wait $!; echo $?; "
        "rm data/scratch/filler; cp -r data/scratch kept"
    )
    done = subprocess.run(
        [*wrapper, "sh", "-c", script, "sh", sys.executable, str(ROOT / "stages/train.py")],
        cwd=training.root, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.stdout == "1\n", done.stdout + done.stderr
    assert "No space left on device" in (training.root / "out").read_text()
    shutil.rmtree(training.root / "data/scratch")
    (training.root / "kept").rename(training.root / "data/scratch")
    assert "going on after epoch" in training.finish()
    training.check(unbroken)
    survived["disk fills up in the middle"] += 1


def test_two_at_once(prepared: Path, unbroken: tuple, tmp_path: Path) -> None:
    tried["second process on the same training"] += 1
    training = Training(tmp_path / "p", prepared, train={"epochs": EPOCHS})
    first = training.start()
    wait_for(first, r"epoch 1/")
    first.send_signal(signal.SIGSTOP)
    second = training.start()
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"process {first.pid} is training the same params" in said
    first.send_signal(signal.SIGCONT)
    first.communicate(timeout=60)
    assert first.returncode == 0
    training.check(unbroken)
    survived["second process on the same training"] += 1


def test_another_seed_starts_afresh(prepared: Path, unbroken: tuple, tmp_path: Path) -> None:
    training = Training(tmp_path / "p", prepared)
    process = training.start()
    wait_for(process, r"epoch 2/")
    kill(process)
    write_params(training.root, train={"epochs": EPOCHS, "seed": 1})
    assert "going on" not in training.finish()
    assert training.results() != unbroken
    client = connect(training.root)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.status for run in runs) == ["FINISHED", "KILLED"]


def test_a_killed_worker_ends_the_job_and_the_restart_resumes(prepared: Path, tmp_path: Path) -> None:
    tried["SIGKILL of one of two workers"] += 1
    whole = Training(tmp_path / "whole", prepared, train={"processes": 2})
    whole.finish()
    training = Training(tmp_path / "p", prepared, train={"processes": 2})
    process = training.start()
    wait_for(process, r"epoch 2/")
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(workers.stdout.split()[-1]), signal.SIGKILL)
    start = time.monotonic()
    said, _ = process.communicate(timeout=60)
    assert time.monotonic() - start < 60
    assert process.returncode == 1
    assert re.search(r"train: worker \d of 2 was killed by signal 9; run the same command again", said), said
    assert "going on after epoch" in training.finish()
    training.check(whole.results())
    survived["SIGKILL of one of two workers"] += 1


def test_terminating_two_workers_saves_and_resumes(prepared: Path, tmp_path: Path) -> None:
    tried["SIGTERM of two workers"] += 1
    whole = Training(tmp_path / "whole", prepared, train={"processes": 2})
    whole.finish()
    training = Training(tmp_path / "p", prepared, train={"processes": 2})
    process = training.start()
    wait_for(process, r"epoch 2/")
    said = kill(process, signal.SIGTERM)
    assert process.returncode == 1, said
    assert "is saved, and the same command goes on from there" in said
    assert "going on after epoch" in training.finish()
    training.check(whole.results())
    survived["SIGTERM of two workers"] += 1


class Network:
    """Two machines, as far as the network is concerned: two namespaces joined by a cable."""

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
                pytest.skip("this machine lets nobody make network namespaces")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.addresses:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def power_off(self, name: str) -> None:
        found = subprocess.run(["ip", "netns", "pids", name], check=True, capture_output=True, text=True)
        for process in found.stdout.split():
            os.kill(int(process), signal.SIGKILL)

    def torchrun(self, name: str, training: Training, port: int) -> "subprocess.Popen[str]":
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


def test_one_of_two_machines_is_killed_and_comes_back(prepared: Path, tmp_path: Path) -> None:
    tried["one of two machines killed and restarted"] += 1
    training = Training(tmp_path / "p", prepared, train={"epochs": 40})
    with Network() as network:
        nodes = {name: network.torchrun(name, training, port=29577) for name in network.addresses}
        while not list(training.root.glob("data/scratch/*/state.previous")):
            assert all(node.poll() is None for node in nodes.values())
            time.sleep(0.01)
        network.power_off("two")
        said, _ = nodes["one"].communicate(timeout=60)
        assert nodes["one"].returncode == 1
        assert "another process of this training is lost" in said
        nodes = {name: network.torchrun(name, training, port=29578) for name in network.addresses}
        ends = {name: node.communicate(timeout=240)[0] for name, node in nodes.items()}
    assert [node.returncode for node in nodes.values()] == [0, 0], ends
    assert "going on after epoch" in "".join(ends.values())
    client = connect(training.root)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train_loss")]
    assert steps == list(range(1, 41))
    survived["one of two machines killed and restarted"] += 1
