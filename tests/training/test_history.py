from pathlib import Path

import pytest

from cifar_resnet.training.history import EpochRecord, read_history, write_history


def test_reading_gives_the_history_that_was_written(tmp_path: Path) -> None:
    history = [
        EpochRecord(1, 2.25, 0.5, None, None, 0.24, 71.5, 690.0),
        EpochRecord(2, 2.0, 0.6, 1.5, 0.7, 0.1, 70.0, 700.0),
    ]
    write_history(tmp_path / "history.csv", history)
    assert read_history(tmp_path / "history.csv") == history
    header = (
        "epoch,train_loss,train_accuracy,validation_loss,validation_accuracy,learning_rate,seconds,images_per_second"
    )
    assert (tmp_path / "history.csv").read_text().splitlines()[0] == header


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_history(path, [None])  # type: ignore[list-item]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
