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
    kept = Checkpoint(tmp_path, minutes=10)
    for generation in (1, 2):
        kept.save({"weights": torch.full((1000,), generation), "progress": (generation, [(0.5, 0.25)], 1.5)})
    return kept


def generation(kept: Checkpoint) -> int | None:
    state, _ = kept.load()
    return None if state is None else int(state["weights"][0])


def test_what_was_saved_comes_back(saved: Checkpoint) -> None:
    state, wrong = saved.load()
    assert state is not None
    assert (state["progress"], wrong) == ((2, [(0.5, 0.25)], 1.5), [])
    assert torch.equal(state["weights"], torch.full((1000,), 2))
    assert {path.name for path in saved.folder.iterdir()} == {NEWEST, PREVIOUS}


def test_nothing_saved_is_nothing_wrong(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path, minutes=10).load() == (None, [])


@pytest.mark.parametrize("place", [0, 31, 32, 2000, -1])
def test_a_flipped_bit_anywhere_falls_back_a_generation(saved: Checkpoint, place: int) -> None:
    content = bytearray((saved.folder / NEWEST).read_bytes())
    content[place] ^= 1
    (saved.folder / NEWEST).write_bytes(content)
    assert generation(saved) == 1
    assert saved.load()[1] == ["state is damaged"]


def test_a_damaged_state_does_not_push_out_the_whole_one_before_it(saved: Checkpoint) -> None:
    os.truncate(saved.folder / NEWEST, 1000)
    saved.save({"weights": torch.full((1000,), 3)})
    assert generation(saved) == 3
    (saved.folder / NEWEST).unlink()
    assert generation(saved) == 1


@pytest.mark.parametrize("length", [0, 1, 32, 1000])
def test_a_truncated_state_falls_back_a_generation(saved: Checkpoint, length: int) -> None:
    os.truncate(saved.folder / NEWEST, length)
    assert generation(saved) == 1


def test_a_missing_state_falls_back_a_generation(saved: Checkpoint) -> None:
    (saved.folder / NEWEST).unlink()
    assert generation(saved) == 1
    assert saved.load()[1] == ["state is missing"]


def test_without_a_whole_generation_there_is_none(saved: Checkpoint) -> None:
    for name in (NEWEST, PREVIOUS):
        os.truncate(saved.folder / name, 100)
    assert saved.load() == (None, ["state is damaged", "state.previous is damaged"])


def test_a_failed_write_loses_nothing(saved: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"cannot save the training's state \(No space left on device\)"):
        saved.save({"weights": torch.zeros(10)})
    assert generation(saved) == 2
    assert {path.name for path in saved.folder.iterdir()} == {NEWEST, PREVIOUS}


def test_the_folder_belongs_to_one_process(tmp_path: Path) -> None:
    folder = tmp_path / "abc"
    code = (
        "import sys; from pathlib import Path; from cifar_resnet.checkpoint import claimed\n"
        "with claimed(Path(sys.argv[1]), minutes=1): print('mine', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code, folder], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        assert checkpoint.is_locked(folder)
        with (
            pytest.raises(UserError, match=f"process {other.pid} is training the same"),
            lock_folder(folder, minutes=1),
        ):
            raise AssertionError
        other.kill()
    assert not checkpoint.is_locked(folder)
    (folder / f"{NEWEST}.99").write_text("left by a kill")
    with lock_folder(folder, minutes=1) as mine:
        assert {path.name for path in folder.iterdir()} == {checkpoint.LOCK}
        mine.save({"progress": 1})
        mine.remove()
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot save the training's state"),
        lock_folder(tmp_path / "file/abc", minutes=1),
    ):
        raise AssertionError


def test_it_is_due_when_its_minutes_have_passed(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path, minutes=1e-9).due
    assert not Checkpoint(tmp_path, minutes=1).due


def test_any_difference_gives_another_fingerprint() -> None:
    values = {"train": {"epochs": 3, "seed": 0}}
    same = json.loads(json.dumps({"train": {"seed": 0, "epochs": 3}}))
    assert checkpoint.fingerprint(values, "code") == checkpoint.fingerprint(same, "code")
    assert checkpoint.fingerprint(values, "code") != checkpoint.fingerprint(values, "edited")
