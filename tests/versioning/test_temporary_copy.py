from pathlib import Path

import pytest

from cifar_resnet.errors import UserError
from cifar_resnet.versioning.temporary_copy import require_tracked


def test_an_input_that_the_temporary_copy_does_not_have_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / ".dvc/tmp/exps/tmp1"
    (copy / "tracked").mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with pytest.raises(UserError, match=r"^params.yaml: predict.input is photos, which is not in the temporary copy"):
        require_tracked(copy, "predict.input", "photos")
    for path in ("tracked", str(tmp_path / "photos"), "data/prepared/test_images.npy"):
        require_tracked(copy, "predict.input", path)


@pytest.mark.parametrize("is_stage", [True, False])
def test_the_project_itself_is_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_stage: bool) -> None:
    if is_stage:
        monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    require_tracked(tmp_path, "predict.input", "photos")
