import os
import re
import resource
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from cifar_resnet.data.dataset import write_array
from cifar_resnet.errors import UserError
from cifar_resnet.evaluation.report import write_csv_table
from cifar_resnet.files import atomic_write, read_object, read_rows

WRITE = "import sys; from pathlib import Path; from cifar_resnet.files import atomic_write\n"
WRITE_AND_PRINT = f"""{WRITE}
print("before")
with atomic_write(Path(sys.argv[1])) as temporary:
    temporary.write_text("content\\n")
print("after")
"""


def write(path: Path, text: str = "new") -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def fail_to_write(path: Path) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("partial")
        raise RuntimeError


def run_script(script: str, argument: Path | str, **options: object) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", script, str(argument)]
    return subprocess.run(command, env=environment, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_a_new_file_gets_its_folders_and_the_default_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a/b" / ("x" * 255)
    write(path)
    assert path.read_text() == "new"
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    assert list(path.parent.iterdir()) == [path]


def test_after_an_error_the_file_is_unchanged_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        fail_to_write(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_no_new_folder_is_left(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "a" / "b" / "file"):
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


def test_a_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for mode in (0o600, 0o664, 0o755):
        path.touch()
        path.chmod(mode)
        write(path)
        assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to other users")
def test_a_file_that_root_replaces_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.chown(path, 1234, 4321)
    write(path)
    assert (path.read_text(), path.stat().st_uid, path.stat().st_gid) == ("new", 1234, 4321)


def test_a_read_only_file_or_a_folder_is_an_error_before_the_block_runs(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("old")
    (tmp_path / "cache").chmod(0o444)
    (tmp_path / "link").symlink_to("cache")
    (tmp_path / "folder").mkdir()
    for name, error in (("cache", PermissionError), ("link", PermissionError), ("folder", IsADirectoryError)):
        with pytest.raises(error, match=name), atomic_write(tmp_path / name):
            pytest.fail("the block ran")
    assert (tmp_path / "cache").read_text() == "old"


def test_an_error_about_the_temporary_file_names_the_file_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File name too long") as error:
        write(tmp_path / ("x" * 256))
    assert error.value.filename == str(tmp_path / ("x" * 256))
    with pytest.raises(FileNotFoundError) as missing, atomic_write(tmp_path / "file") as temporary:
        temporary.read_text()
    assert missing.value.filename == str(tmp_path / "file")
    with pytest.raises(FileNotFoundError) as other, atomic_write(tmp_path / "file"):
        (tmp_path / "other").read_text()
    assert other.value.filename == str(tmp_path / "other")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_folder_that_cannot_be_written_is_an_error_that_names_the_file() -> None:
    write_as_other_user = f"import os\n{WRITE}os.setuid(1234)\nwith atomic_write(Path(sys.argv[1])): pass"
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is closed to other users
        Path(folder).chmod(0o755)
        result = run_script(write_as_other_user, Path(folder) / "file", stderr=subprocess.PIPE)
    assert result.stderr.splitlines()[-1] == f"PermissionError: [Errno 13] Permission denied: '{folder}/file'"


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    target, link, second = tmp_path / "elsewhere/target", tmp_path / "link", tmp_path / "links/second"
    target.parent.mkdir()
    second.parent.mkdir()
    target.write_text("old")
    link.symlink_to("elsewhere/target")
    second.symlink_to("../link")
    write(second)
    assert target.read_text() == "new"
    assert link.is_symlink()
    assert second.is_symlink()
    target.unlink()
    write(link, "created")
    assert target.read_text() == "created"
    assert link.is_symlink()


def test_a_pipe_is_written_to_only_after_the_block_ended_without_an_error(tmp_path: Path) -> None:
    pipe, received = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    with pytest.raises(RuntimeError):
        fail_to_write(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()), daemon=True)
    reader.start()
    write(pipe, "content" * 100_000)
    reader.join(10)
    assert received == ["content" * 100_000]
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_devices_are_written_to_and_their_errors_name_them(tmp_path: Path) -> None:
    for device in ("null", "full"):
        (tmp_path / device).symlink_to(f"/dev/{device}")
    write(tmp_path / "null")
    with pytest.raises(OSError, match=r"No space left on device: .*full"):
        write(tmp_path / "full")
    assert Path("/dev/null").is_char_device()
    assert Path("/dev/full").is_char_device()


def test_a_full_disk_is_an_error_that_names_the_file_and_keeps_it(tmp_path: Path) -> None:
    path, (soft, hard) = tmp_path / "file", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_text("old")
    writers = (
        lambda: write(path, "new" * 1000),
        lambda: write_array(path, np.zeros(1000)),
        lambda: write_csv_table(path, [{"column": "value"}] * 1000),
    )
    for writer in writers:
        # A limit in bytes. Its error is EFBIG, and comes from the same calls as that of a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(OSError, match=f"File too large: '{path}'"):
                writer()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_an_error_that_names_the_file_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("full", "/proc/new"):  # a link to a folder in /proc, where none can be made
        if folder == "full":
            Path(folder).symlink_to("/proc/new")
        with pytest.raises(OSError, match=f": '{folder}/folder/file'"):
            write(Path(folder) / "folder/file")


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_gets_the_content_in_order_whatever_it_is(tmp_path: Path, name: str) -> None:
    link, expected = tmp_path / "link", "before\ncontent\nafter\n"
    link.symlink_to(name)  # a fault replaces this link, not the one in /dev
    assert run_script(WRITE_AND_PRINT, link, stdout=subprocess.PIPE).stdout == expected
    log = tmp_path / "log"
    log.write_text("first\n")
    with log.open("a") as stream:
        assert run_script(WRITE_AND_PRINT, link, stdout=stream).returncode == 0
    assert log.read_text() == f"first\n{expected}"
    with log.open("w") as stream:  # as in `program --output log >log`
        assert run_script(WRITE_AND_PRINT, log, stdout=stream).returncode == 0
    assert log.read_text() == expected


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_writable_file_in_a_folder_that_forbids_its_replacement_is_written_in_place() -> None:
    write_as_other_user = f"""import os
{WRITE}
os.setuid(1234)
with atomic_write(Path(sys.argv[1])) as temporary:
    temporary.write_text("new")
"""
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is closed to other users
        path = Path(folder) / "file"
        for mode in (0o755, 0o1777):  # the second as /tmp
            path.write_text("a longer old text")
            path.chmod(0o666)
            path.parent.chmod(mode)
            inode = path.stat().st_ino
            result = run_script(write_as_other_user, path, stderr=subprocess.PIPE)
            assert result.returncode == 0, result.stderr
            assert (path.read_text(), path.stat().st_ino) == ("new", inode)


def test_files_are_written_through_atomic_write() -> None:
    """A write in another way would replace a link or a pipe, or leave a partial file."""
    writes = re.compile(r"\.write_(text|bytes)\(|\.open\(\"[wax]|savefig\(|np\.save\(|torch\.save\(")
    own_folders = {"recovery/checkpoint.py", "data/download.py", "search/worker.py", "versioning/revisions.py"}
    for path in (ROOT / "src/cifar_resnet").rglob("*.py"):
        if str(path.relative_to(ROOT / "src/cifar_resnet")) not in own_folders:
            for line in path.read_text(encoding="utf-8").splitlines():
                assert not writes.search(line) or re.search(r"\b(temporary|stream)\b", line), f"{path.name}: {line}"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "not found; run `dvc repro`"),
        (b"<<<<<<< HEAD\n", "is damaged (Expecting value"),
        (b"\xff", "is damaged ('utf-8' codec"),
        (b"[1]", "is damaged (no accuracy)"),
        (b"[" * 100_000, "is damaged (maximum recursion depth"),
        (b"1", "is damaged (argument of type 'int'"),
        (b'{"loss": 1}', "is damaged (no accuracy)"),
    ],
)
def test_a_damaged_json_file_is_one_line(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "metrics.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"{path}{':' if content is None else ''} {reason}")):
        read_object(path, "accuracy")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no column class, recall"),
        ("<<<<<<< HEAD\nclass,recall\n", "no column class, recall"),
        ("class,recall\ncat\n", "a row is longer or shorter than the header"),
        ("class,recall\n<<<<<<< HEAD\ncat,0.5\n", "a row is longer or shorter than the header"),
        ("class,recall\ncat,0.5,1\n", "a row is longer or shorter than the header"),
    ],
)
def test_a_damaged_csv_file_is_one_line(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "evaluation/table.csv"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(
        UserError, match=re.escape(f"is damaged ({reason}); run `dvc repro evaluate` to write it again")
    ):
        read_rows(path, "class", "recall")


@pytest.mark.parametrize("content", ["", "class,recall\ncat,0.5\n"])
def test_a_table_is_read_and_an_empty_file_has_no_rows(tmp_path: Path, content: str) -> None:
    (tmp_path / "table.csv").write_text(content)
    assert read_rows(tmp_path / "table.csv") == ([{"class": "cat", "recall": "0.5"}] if content else [])
