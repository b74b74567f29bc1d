import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cifar_resnet.errors import UserError
from cifar_resnet.recovery import checkpoint
from cifar_resnet.recovery.checkpoint import NEWEST, PREVIOUS, Checkpoint, lock_folder


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoint:
    """Two generations: 1, then 2."""
    states = Checkpoint(tmp_path, minutes=10)
    for number in (1, 2):
        states.save({"weights": torch.full((1000,), number), "progress": (number, [(0.5, 0.25)], 1.5)})
    return states


def loaded_generation(states: Checkpoint) -> int | None:
    state, _ = states.load()
    return None if state is None else int(state["weights"][0])


def test_load_returns_what_was_saved(saved: Checkpoint) -> None:
    state, problems = saved.load()
    assert state is not None
    assert (state["progress"], problems) == ((2, [(0.5, 0.25)], 1.5), [])
    assert torch.equal(state["weights"], torch.full((1000,), 2))
    assert {path.name for path in saved.folder.iterdir()} == {NEWEST, PREVIOUS}


def test_an_empty_folder_has_no_state_and_no_problem(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path, minutes=10).load() == (None, [])


@pytest.mark.parametrize("index", [0, 31, 32, 2000, -1])
def test_load_skips_a_state_with_a_flipped_bit(saved: Checkpoint, index: int) -> None:
    content = bytearray((saved.folder / NEWEST).read_bytes())
    content[index] ^= 1
    (saved.folder / NEWEST).write_bytes(content)
    assert loaded_generation(saved) == 1
    assert saved.load()[1] == ["state is damaged"]


def test_a_damaged_state_does_not_replace_the_complete_one_before_it(saved: Checkpoint) -> None:
    os.truncate(saved.folder / NEWEST, 1000)
    saved.save({"weights": torch.full((1000,), 3)})
    assert loaded_generation(saved) == 3
    (saved.folder / NEWEST).unlink()
    assert loaded_generation(saved) == 1


@pytest.mark.parametrize("length", [0, 1, 32, 1000])
def test_load_skips_a_truncated_state(saved: Checkpoint, length: int) -> None:
    os.truncate(saved.folder / NEWEST, length)
    assert loaded_generation(saved) == 1


def test_load_skips_a_missing_state(saved: Checkpoint) -> None:
    (saved.folder / NEWEST).unlink()
    assert loaded_generation(saved) == 1
    assert saved.load()[1] == ["state is missing"]


def test_load_returns_none_if_no_state_is_complete(saved: Checkpoint) -> None:
    for name in (NEWEST, PREVIOUS):
        os.truncate(saved.folder / name, 100)
    assert saved.load() == (None, ["state is damaged", "state.previous is damaged"])


def test_a_failed_save_keeps_the_earlier_states(saved: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"cannot save the training's state \(No space left on device\)"):
        saved.save({"weights": torch.zeros(10)})
    assert loaded_generation(saved) == 2
    assert {path.name for path in saved.folder.iterdir()} == {NEWEST, PREVIOUS}


def test_one_process_at_a_time_uses_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "abc"
    code = (
        "import sys; from pathlib import Path; from cifar_resnet.recovery.checkpoint import lock_folder\n"
        "with lock_folder(Path(sys.argv[1]), minutes=1): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code, folder], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        assert checkpoint.is_locked(folder)
        with (
            pytest.raises(UserError, match=f"process {other.pid} is training the same"),
            lock_folder(folder, minutes=1),
        ):
            raise AssertionError
        other.kill()
    assert not checkpoint.is_locked(folder)
    (folder / f"{NEWEST}.99").write_text("left by a killed process")
    with lock_folder(folder, minutes=1) as states:
        assert {path.name for path in folder.iterdir()} == {checkpoint.LOCK, checkpoint.OWNER}
        states.save({"progress": 1})
        states.remove()
    assert not folder.exists()


def test_a_folder_that_cannot_be_created_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot save the training's state"),
        lock_folder(tmp_path / "file/abc", minutes=1),
    ):
        raise AssertionError


def test_a_checkpoint_is_due_after_its_minutes(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path, minutes=1e-9).due
    assert not Checkpoint(tmp_path, minutes=1).due


def test_different_values_have_different_fingerprints() -> None:
    values = {"train": {"epochs": 3, "seed": 0}}
    same = json.loads(json.dumps({"train": {"seed": 0, "epochs": 3}}))
    assert checkpoint.fingerprint(values, "code") == checkpoint.fingerprint(same, "code")
    assert checkpoint.fingerprint(values, "code") != checkpoint.fingerprint(values, "edited")


@pytest.mark.parametrize(
    ("module", "changes_folder"),
    [
        ("data.dataset", True),
        ("models.resnet", True),
        ("inference.calibration", True),
        ("training.augment", True),
        ("recovery.resume", True),
        ("device", True),
        ("cli.main", False),
        ("tracking.run", False),
        ("registry.versions", False),
        ("params.schema", False),
        ("progress", False),
    ],
)
def test_the_folder_depends_on_the_code_that_affects_the_result_or_the_states_format(
    module: str, changes_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = importlib.import_module(f"cifar_resnet.{module}")
    assert imported.__file__ is not None
    before = checkpoint.training_folder(tmp_path, "params")
    assert before.parent == tmp_path / checkpoint.SCRATCH
    edited = tmp_path / "edited.py"
    edited.write_text(Path(imported.__file__).read_text(encoding="utf-8") + "# edited\n", encoding="utf-8")
    monkeypatch.setattr(imported, "__file__", str(edited))
    assert (checkpoint.training_folder(tmp_path, "params") != before) == changes_folder
