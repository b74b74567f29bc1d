import re
from pathlib import Path

import pytest
from conftest import git, write_params

from cifar_resnet.errors import UserError
from cifar_resnet.versioning.temporary_copy import require_own_pictures, require_tracked

OWN = ("-S", "download.dataset=folder", "-S", "download.folder=my/photos")


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


@pytest.fixture
def with_photos(tmp_path: Path) -> Path:
    """A Git repository with an untracked folder of pictures."""
    write_params(tmp_path)
    git(tmp_path, "init", "--quiet")
    (tmp_path / "my/photos").mkdir(parents=True)
    (tmp_path / "my/photos/a.png").touch()
    return tmp_path


def test_an_untracked_folder_of_own_pictures_is_an_error_that_names_three_ways(with_photos: Path) -> None:
    with pytest.raises(UserError) as caught:
        require_own_pictures(with_photos, ["--temp", *OWN])
    assert str(caught.value) == (
        "download.folder is my/photos, which neither Git nor DVC tracks, so that it is not in the temporary copy of an "
        "experiment; run `dvc add my/photos`, name it by its absolute path, or add MORE='-C my/photos'"
    )
    require_own_pictures(with_photos, [*OWN, "-C", "my/photos/"])
    require_own_pictures(with_photos, [*OWN, "-S", f"download.folder={with_photos / 'my/photos'}"])
    require_own_pictures(with_photos, ["-S", "download.folder=my/photos"])  # CIFAR-10 reads no folder


@pytest.mark.parametrize("path", ["my/photos/a.png", "my/photos.dvc", "my.dvc"])
def test_a_folder_of_own_pictures_that_git_or_dvc_tracks_is_accepted(with_photos: Path, path: str) -> None:
    (with_photos / path).touch()
    git(with_photos, "add", path)
    require_own_pictures(with_photos, list(OWN))


def test_a_missing_folder_of_own_pictures_is_an_error(with_photos: Path) -> None:
    with pytest.raises(UserError, match=r"^download.folder is other, which does not exist; put your pictures there or"):
        require_own_pictures(with_photos, [*OWN, "-S", "download.folder=other"])


def test_the_folder_of_params_yaml_is_checked_too(with_photos: Path) -> None:
    write_params(with_photos, download={"dataset": "folder", "folder": "my/photos"})
    with pytest.raises(UserError, match=r"^download.folder is my/photos, which neither Git nor DVC tracks"):
        require_own_pictures(with_photos, [])
