"""Kills real trainings and fills real file systems: each training ends with the bytes of an uninterrupted one.

Run by `make test-faults`, in about 11 minutes with test_worker_faults.py.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, write_params
from training_process import EPOCHS, Results, Training, kill, wait_for

from cifar_resnet.recovery.checkpoint import NEWEST, PREVIOUS

pytestmark = pytest.mark.faults
EVERY_STEP = 1e-9  # checkpoint.minutes: a state is saved after every step
BIG = [64, 256, 256]  # channels; writing their state takes long enough that a kill can hit it


@pytest.fixture(scope="module")
def prepared(project: Path) -> Path:
    return project / "data/prepared"


@pytest.fixture(scope="module")
def uninterrupted(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    training = Training(tmp_path_factory.mktemp("uninterrupted"), prepared)
    training.finish()
    return training.results()


@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_resumes_after_sigkill_at_the_end_of_an_epoch(
    epoch: int, prepared: Path, uninterrupted: Results, tmp_path: Path
) -> None:
    training = Training(tmp_path / "project", prepared)
    process = training.start()
    wait_for(process, rf"epoch {epoch}/{EPOCHS}")
    kill(process)
    training.finish()
    training.check(uninterrupted)


@pytest.mark.parametrize("number", range(6))
def test_resumes_after_sigkill_within_an_epoch(
    number: int, prepared: Path, uninterrupted: Results, tmp_path: Path
) -> None:
    training = Training(tmp_path / "project", prepared, checkpoint={"minutes": EVERY_STEP})
    process = training.start()
    wait_for(process, r"epoch 1/")
    time.sleep(random.Random(number).uniform(0, 0.4))
    kill(process)
    assert "train: resumed after epoch" in training.finish()
    training.check(uninterrupted)


@pytest.mark.parametrize("number", range(3))
def test_resumes_after_sigkill_while_the_state_is_written(number: int, prepared: Path, tmp_path: Path) -> None:
    wide = {"channels": BIG, "blocks": [1] * 3, "kernels": [3] * 3, "skip_kernels": [3] * 3, "head_pool_kernel": 3}
    sections = {"model": wide, "train": {"epochs": 2}, "checkpoint": {"minutes": EVERY_STEP}}
    reference = Training(tmp_path / "reference", prepared, **sections)
    reference.finish()
    training = Training(tmp_path / "project", prepared, **sections)
    for _ in range(5):
        process = training.start()
        while not list(training.root.glob("data/scratch/*/state")):
            assert process.poll() is None
        while not (partial := list(training.root.glob("data/scratch/*/state.[0-9]*"))):
            assert process.poll() is None
        kill(process)
        if partial[0].exists():
            break
    assert partial[0].exists(), "no kill happened during a write"
    training.finish()
    assert training.results() == reference.results()


def damage_truncated(folder: Path) -> None:
    os.truncate(folder / NEWEST, (folder / NEWEST).stat().st_size // 2)


def damage_flipped(folder: Path) -> None:
    content = bytearray((folder / NEWEST).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / NEWEST).write_bytes(content)


def damage_missing(folder: Path) -> None:
    (folder / NEWEST).unlink()


@pytest.mark.parametrize("damage", [damage_truncated, damage_flipped, damage_missing])
def test_resumes_from_the_previous_state_if_the_newest_is_damaged(
    damage: Callable[[Path], None], prepared: Path, uninterrupted: Results, tmp_path: Path
) -> None:
    training = Training(tmp_path / "project", prepared)
    process = training.start()
    wait_for(process, r"epoch 4/")
    kill(process)
    assert (training.state_folder / PREVIOUS).exists()
    damage(training.state_folder)
    output = training.finish()
    assert re.search(r"the saved state is (damaged|missing); it is skipped", output)
    assert "train: resumed after epoch" in output
    training.check(uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_resumes_after_sigint_and_sigterm(
    number: signal.Signals, prepared: Path, uninterrupted: Results, tmp_path: Path
) -> None:
    training = Training(tmp_path / "project", prepared)
    process = training.start()
    wait_for(process, r"epoch 2/")
    output = kill(process, number)
    assert process.returncode == 1
    assert "is saved; run the same command again to continue" in output
    assert [run.info.status for run in training.mlflow_runs()[1]] == ["KILLED"]
    assert "train: resumed after epoch" in training.finish()
    training.check(uninterrupted)


def small_disk(training: Training, options: str) -> list[str]:
    """A command prefix: its command sees a small file system at data/scratch, in a new mount namespace."""
    (training.root / "data/scratch").mkdir()
    mount = f"mount -t tmpfs -o {options} tmpfs '{training.root}/data/scratch' && exec \"$@\""
    wrapper = ["unshare", "--mount", "--map-root-user", "--user", "sh", "-c", mount, "sh"]
    if subprocess.run([*wrapper, "true"], check=False, capture_output=True).returncode:
        wrapper = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    if subprocess.run([*wrapper, "true"], check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted on this machine")
    return wrapper


@pytest.mark.parametrize(
    ("options", "reason"), [("size=200k", "No space left on device"), ("ro", "Read-only file system")]
)
def test_a_state_that_cannot_be_saved_is_a_user_error(
    options: str, reason: str, prepared: Path, uninterrupted: Results, tmp_path: Path
) -> None:
    training = Training(tmp_path / "project", prepared)
    process = training.start(*small_disk(training, options))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"cannot save the training's state ({reason})" in output
    assert "Traceback" not in output
    training.finish()
    training.check(uninterrupted)


def test_a_disk_that_fills_up_keeps_the_saved_states(prepared: Path, uninterrupted: Results, tmp_path: Path) -> None:
    training = Training(tmp_path / "project", prepared)
    wrapper = small_disk(training, "size=1m")
    script = (
        '"$@" > out 2>&1 & while ! [ -e data/scratch/*/state.previous ]; do :; done; '
        "dd if=/dev/zero of=data/scratch/filler bs=4k 2>/dev/null; wait $!; echo $?; "
        "rm data/scratch/filler; cp -r data/scratch saved"
    )
    result = subprocess.run(
        [*wrapper, "sh", "-c", script, "sh", sys.executable, str(ROOT / "stages/train.py")],
        cwd=training.root, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert result.stdout == "1\n", result.stdout + result.stderr
    assert "No space left on device" in (training.root / "out").read_text()
    shutil.rmtree(training.root / "data/scratch")
    (training.root / "saved").rename(training.root / "data/scratch")
    assert "train: resumed after epoch" in training.finish()
    training.check(uninterrupted)


def test_a_second_process_on_the_same_training_is_a_user_error(
    prepared: Path, uninterrupted: Results, tmp_path: Path
) -> None:
    training = Training(tmp_path / "project", prepared, train={"epochs": EPOCHS})
    first = training.start()
    wait_for(first, r"epoch 1/")
    first.send_signal(signal.SIGSTOP)
    second = training.start()
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"process {first.pid} is training the same params" in output
    first.send_signal(signal.SIGCONT)
    first.communicate(timeout=60)
    assert first.returncode == 0
    training.check(uninterrupted)


def test_another_seed_starts_from_the_beginning(prepared: Path, uninterrupted: Results, tmp_path: Path) -> None:
    training = Training(tmp_path / "project", prepared)
    process = training.start()
    wait_for(process, r"epoch 2/")
    kill(process)
    write_params(training.root, train={"epochs": EPOCHS, "seed": 1})
    assert "resumed" not in training.finish()
    assert training.results() != uninterrupted
    assert sorted(run.info.status for run in training.mlflow_runs()[1]) == ["FINISHED", "KILLED"]
