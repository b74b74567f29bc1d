import hashlib
import io
import pickle
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_images, write_raw
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cifar_resnet.data import cifar10, download
from cifar_resnet.errors import UserError


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny data, whose MD5s are for this test the publisher's."""
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


def fetch(source: object, folder: Path) -> dict[str, bytes]:
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
        assert fetch(source, tmp_path / str(number)) == published


def test_only_known_members_are_taken_and_none_leaves_the_folder(raw: Path, tmp_path: Path) -> None:
    files = {f"../../{path.name}": path.read_bytes() for path in raw.iterdir()} | {"../../evil.sh": b"rm"}
    got = fetch(pack(tmp_path / "a.tar.gz", files), tmp_path / "deep/er/out")
    assert set(got) == set(cifar10.MD5)
    assert not list(tmp_path.rglob("evil.sh"))


def test_a_damaged_file_is_refused_and_nothing_appears(raw: Path, tmp_path: Path) -> None:
    damaged = raw / "test_batch.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"test_batch.bin is damaged: MD5 [0-9a-f]{32}, [0-9a-f]{32} expected"):
        fetch(raw, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_the_next_source_is_tried_and_named(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.tar.gz").write_bytes(b"not an archive")
    sources = [str(tmp_path / "broken.tar.gz"), str(raw)]
    assert download.download_cifar10(sources, tmp_path / "out", timeout_seconds=5) == str(raw)
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(cifar10.MD5)


def test_if_all_fail_each_source_and_the_way_by_hand_are_named(raw: Path, tmp_path: Path) -> None:
    (raw / "test_batch.bin").unlink()
    with pytest.raises(UserError) as caught:
        download.download_cifar10(["/nowhere", str(raw)], tmp_path / "out", timeout_seconds=5)
    for part in ("/nowhere: ", "test_batch.bin not found", "download.sources", "cifar-10-binary.tar.gz"):
        assert part in str(caught.value)


def test_a_pickle_that_wants_to_run_code_is_refused(raw: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "executed"),))

    folder = tmp_path / "python"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError, match="refused: the file wants to run"):
        fetch(folder, tmp_path / "out")
    assert not (tmp_path / "executed").exists()


def test_a_server_that_falls_silent_is_given_up(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="timed out"):
        download.download_file(f"http://127.0.0.1:{server.server_port}/silent", tmp_path / "a", 0.3)


def test_a_download_is_capped(server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "LIMIT_BYTES", 2_000_000)
    with pytest.raises(OSError, match="more than 2000000 bytes"):
        download.download_file(f"http://127.0.0.1:{server.server_port}/", tmp_path / "a", 5)


def test_a_picture_of_another_size_is_refused() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (1024, 3)).save(stream, "PNG")
    with pytest.raises(ValueError, match="expected"):
        download.decode_png_rows(stream.getvalue())


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    images = tiny_images(3, seed=1)
    rows = images.pixels.reshape(-1, 3, 1024).transpose(0, 2, 1)
    (tmp_path / "a.bin").write_bytes(cifar10.encode_records(rows, images.labels.tolist()))
    again = cifar10.read_records(tmp_path / "a.bin")
    assert np.array_equal(again.pixels, images.pixels)
    assert np.array_equal(again.labels, images.labels)


def test_a_file_with_fewer_images_is_refused(raw: Path) -> None:
    path = raw / "test_batch.bin"
    path.write_bytes(path.read_bytes()[: -cifar10.RECORD_BYTES])
    with pytest.raises(UserError, match="39 images found, 40 expected"):
        cifar10.read_test(raw)


@given(size=st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_only_whole_records_are_read(tmp_path_factory: pytest.TempPathFactory, size: int) -> None:
    path = tmp_path_factory.mktemp("records") / "a.bin"
    path.write_bytes(b"\1" * size)
    if size and size % cifar10.RECORD_BYTES == 0:
        assert len(cifar10.read_records(path)) == size // cifar10.RECORD_BYTES
    else:
        with pytest.raises(UserError, match=f"{size} bytes found"):
            cifar10.read_records(path)
