import re
from pathlib import Path

import pytest

from cifar_resnet.errors import UserError
from cifar_resnet.versioning.temporary_copy import require_tracked


def test_an_input_that_the_temporary_copy_does_not_have_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / ".dvc/tmp/exps/tmp1"
    (copy / "tracked").mkdir(parents=True)
    (copy / "data/prepared").mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for path in ("photos", "data/photos", "./photos", "../photos"):
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
        message = f"params.yaml: predict.input is {path}, which is not in the temporary copy"
        with pytest.raises(UserError, match=f"^{re.escape(message)}"):
            require_tracked(copy, "predict.input", path)
    for path in ("tracked", str(tmp_path / "photos"), "data/prepared", "data/evaluation/figures"):
        require_tracked(copy, "predict.input", path)


@pytest.mark.parametrize("is_stage", [True, False])
def test_the_project_itself_is_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_stage: bool) -> None:
    if is_stage:
        monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    require_tracked(tmp_path, "predict.input", "photos")
