"""The model and the tracking behind real servers: HTTP, PostgreSQL, several writers; run by `make test-services`."""

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from conftest import ROOT, git, rows, stage, write_params
from dvc.repo import Repo
from PIL import Image

from cifar_resnet.errors import UserError
from cifar_resnet.inference import image_reader
from cifar_resnet.params.file import load_params, with_overrides
from cifar_resnet.registry.promotion import promotion_history
from cifar_resnet.search.study import Result, Study
from cifar_resnet.tracking import backfill
from cifar_resnet.tracking.client import connect

pytestmark = pytest.mark.services
START_SECONDS = 180  # a server that imports torch on a busy machine
NAME = "cifar10-resnet"


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def running(command: list[str | Path], log: Path, ready: list[str | Path] | str, **how: Any) -> Iterator[None]:
    """A server in its own process group, once the address or command `ready` answers; ended afterwards."""
    with log.open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True, **how)
    try:
        end = time.monotonic() + START_SECONDS
        while not answers(ready):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.5)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(ready: list[str | Path] | str) -> bool:
    if not isinstance(ready, str):
        return subprocess.run(ready, capture_output=True, check=False).returncode == 0
    try:
        with urllib.request.urlopen(ready, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def program(name: str) -> Path:
    return Path(sys.executable).with_name(name)


def post(address: str, body: bytes, kind: str = "application/json") -> tuple[int, str]:
    """(status, text) of the answer."""
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=300) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def ask(address: str, value: object) -> tuple[int, str]:
    return post(address, json.dumps({"inputs": value}).encode())


def png(pixels: np.ndarray, size: tuple[int, int]) -> bytes:  # type: ignore[type-arg]
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def served(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `mlflow models serve` for the champion of the tiny project, with pickle forbidden."""
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    command = [program("mlflow"), "models", "serve", "--model-uri", f"models:/{NAME}@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    with running(command, folder / "log", f"{address}/ping", cwd=folder, env=environment):
        yield address


def test_raw_images_over_http_get_the_answers_of_predict(project: Path, served: str) -> None:
    pixels = np.load(project / "data/prepared/test_images.npy", allow_pickle=False)
    status, text = ask(served, pixels.transpose(0, 2, 3, 1).tolist())
    assert status == 200, text
    found, expected = json.loads(text)["predictions"], rows(project / "data/predictions/predictions.csv")
    assert len(found) == len(expected) == 40
    for answer, row in zip(found, expected, strict=True):
        assert (str(answer["label"]), answer["class_name"]) == (row["label"], row["class_name"])
        assert len(answer["probabilities"]) == 10
        assert max(answer["probabilities"]) == pytest.approx(float(row["confidence"]), abs=1e-3)  # other batches


def test_a_photograph_over_http_gets_the_answer_of_its_small_copy(project: Path, served: str, tmp_path: Path) -> None:
    pixels = np.load(project / "data/prepared/test_images.npy", allow_pickle=False)[3].transpose(1, 2, 0)
    (tmp_path / "photo.png").write_bytes(png(pixels, (640, 480)))
    with (tmp_path / "photo.png").open("rb") as stream:
        small = image_reader.read_image(stream).transpose(1, 2, 0)
    photograph = base64.b64encode((tmp_path / "photo.png").read_bytes()).decode()
    (status, text), (_, expected) = ask(served, [photograph]), ask(served, [small.tolist()])
    assert status == 200, text
    assert json.loads(text) == json.loads(expected)


def test_what_cannot_be_used_is_refused_with_the_reason_and_the_server_lives_on(served: str) -> None:
    good = np.zeros((1, 32, 32, 3), dtype=int)
    broken = base64.b64encode(png(np.zeros((32, 32, 3), np.uint8), (64, 64))[:60]).decode()
    for value, reason in (
        ([], "an input of type <class 'list'> was found"),
        (7, "shape () found"),
        ("text", "shape () found"),
        ({"image": 1}, "an input of type <class 'dict'> was found"),
        ([{"image": 1}], "an input of type <class 'list'> was found"),
        (None, "an input of type <class 'NoneType'> was found"),
        (np.zeros((1, 3, 32, 32)).tolist(), "shape (1, 3, 32, 32) found"),
        ((good + 0.5).tolist(), "float64 found"),
        ((good - 1).tolist(), "numbers from -1 to -1 found"),
        ([broken], "image 0: not readable: "),
        (["%%%"], "image 0: not base64"),
        (["A" * 20_000_001], "20,000,001 characters found, 20,000,000 allowed"),
        (["A"] * 2001, "2,001 images found, 2,000 in a request allowed"),
    ):
        status, text = ask(served, value)
        assert 400 <= status < 500, f"{value!r:.60}: {status} {text[:500]}"
        assert reason in json.loads(text)["message"], text[:500]
    for body, kind, status in (
        (b"", "application/json", 400),
        (b'{"inputs": 1, "instances": 2}', "application/json", 400),
        (b'{"dataframe_records": [{"image": "x"}]}', "application/json", 400),
        (b'{"dataframe_split": {"data": [[1]]}}', "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"{", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b'{"other": 1}', "application/json", 400),
        (b"a,b\n1,2\n", "text/csv", 400),
        (b"x", "image/png", 415),
    ):
        assert post(served, body, kind)[0] == status, body
    assert ask(served, good.tolist())[0] == 200


WHENCE = """
import sys
import mlflow

mlflow.pyfunc.load_model(sys.argv[1])
print(*(module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "cifar_resnet"))
"""


def test_the_registered_model_brings_its_own_code(project: Path, tmp_path: Path) -> None:
    """Also where this package is installed: an older version must answer with the code that it came with."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}"}
    command = [sys.executable, "-c", WHENCE, f"models:/{NAME}@champion"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    files = done.stdout.split()
    assert "inputs.py" in {Path(file).name for file in files}
    assert all(file.startswith(str(project / "mlartifacts")) for file in files), files


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """The address of a PostgreSQL of our own in a temporary folder, trusting whoever reaches 127.0.0.1; it has the
    databases `mlflow` and `search`, as either program wants one to itself."""
    initdb = shutil.which("initdb") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    if initdb is None:
        pytest.fail("no PostgreSQL found: apt-get install postgresql")
    binaries, port = Path(initdb).resolve().parent, free_port()
    how = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if how:  # PostgreSQL refuses to run as root
            shutil.chown(folder, "nobody", "nogroup")
        options = ["--auth=trust", "--username=mlflow", "--encoding=UTF8", "--no-sync"]
        subprocess.run([initdb, "-D", folder / "data", *options], check=True, capture_output=True, cwd=folder, **how)
        command = [binaries / "postgres", "-D", folder / "data", "-h", "127.0.0.1", "-p", str(port), "-k", folder]
        ready = [binaries / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        with running(command, folder / "log", ready, cwd=folder, **how):
            for database in ("mlflow", "search"):
                reach = ["-h", "127.0.0.1", "-p", str(port), "-U", "mlflow"]
                subprocess.run([binaries / "createdb", *reach, database], check=True, cwd=folder, **how)
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}"


@pytest.fixture(scope="module")
def server(postgresql: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `mlflow server` on PostgreSQL, with a folder for artifacts."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    command = [program("mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"{postgresql}/mlflow",
        "--artifacts-destination",
        (folder / "artifacts").as_uri(),
    ]
    address = f"http://127.0.0.1:{port}"
    with running(command, folder / "log", f"{address}/health", cwd=folder):
        yield address


def test_a_server_lost_in_the_middle_costs_no_training_and_no_metric(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, port, epochs = tmp_path / "project", free_port(), 30
    (root / "data").mkdir(parents=True)
    (root / "data/prepared").symlink_to(project / "data/prepared")
    write_params(root, train={"epochs": epochs}, evaluate={"corruptions": False}, register={"min_accuracy": 0.0})
    git(root, "init", "--quiet")
    Repo.init(str(root)).close()
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    git(root, *identity, "commit", "--quiet", "--allow-empty", "--message", "start")
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    command = [program("mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    log, ready = tmp_path / "log", f"{address}/health"
    with running(command, log, ready, cwd=tmp_path):
        training = subprocess.Popen(
            [sys.executable, ROOT / "stages/train.py"], cwd=root, stdout=-1, stderr=subprocess.STDOUT, text=True
        )
        assert training.stdout is not None
        while f"epoch  2/{epochs}" not in (line := training.stdout.readline()):
            assert line, "ended before its second epoch"
    said = training.communicate()[0]
    assert training.returncode == 0, said
    assert said.count("the work goes on, what is to be logged is kept") == 1
    assert said.count("once it is back, `make mlflow-rebuild` delivers it") == 1
    stage("evaluate").main(root)
    assert "`make mlflow-rebuild` then delivers these results" in capsys.readouterr().out
    with pytest.raises(UserError, match="cannot be used"):
        stage("register").main(root)

    with running(command, log, ready, cwd=tmp_path):
        run_id = json.loads((root / "data/model/model.json").read_text())["provenance"]["mlflow_run"]
        client = connect(root)
        assert client.get_run(run_id).info.status == "RUNNING"
        backfill.backfill_runs(root)
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED"
        history = client.get_metric_history(run_id, "train_loss")
        assert sorted(metric.step for metric in history) == list(range(1, epochs + 1))
        metrics = json.loads((root / "data/evaluation/metrics.json").read_text())
        assert run.data.metrics["test_accuracy"] == metrics["accuracy"]
        stage("register").main(root)


def test_stages_against_a_shared_server(
    project: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    decisions = []
    for seed in (0, 1):
        root = tmp_path / str(seed)
        (root / "data").mkdir(parents=True)
        (root / "data/prepared").symlink_to(project / "data/prepared")
        write_params(root, train={"seed": seed})
        for name in ("train", "evaluate", "register"):
            stage(name).main(root)
        decisions.append(json.loads((root / "data/registry/decision.json").read_text()))
        assert not (root / "mlflow.db").exists()
    assert [decision["version"] for decision in decisions] == [1, 2]
    assert decisions[0]["champion"]
    assert decisions[1]["comparison"]["images"] == 40

    client = connect(tmp_path)
    run = client.get_run(decisions[0]["run_id"])
    metrics = json.loads((tmp_path / "0/data/evaluation/metrics.json").read_text())
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_accuracy"] == metrics["accuracy"]
    assert len(client.get_metric_history(run.info.run_id, "train_loss")) == 3
    assert "history.csv" in {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    pixels = np.load(project / "data/prepared/test_images.npy", allow_pickle=False).transpose(0, 2, 3, 1)
    right = [row["actual"] for row in rows(tmp_path / "0/data/evaluation/predictions.csv")]
    found = [answer["class_name"] for answer in model.predict(pixels)]
    assert np.mean([one == other for one, other in zip(found, right, strict=True)]) > 0.5


def test_registrations_at_once_give_one_version_and_one_answer(project: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "DVC_ROOT": str(tmp_path)}
    connect(tmp_path)
    roots = [tmp_path / str(number) for number in range(3)]
    for root in roots:
        (root / "data").mkdir(parents=True)
        for name in ("prepared", "model", "evaluation"):
            (root / "data" / name).symlink_to(project / "data" / name)
        write_params(root)
    command = [sys.executable, ROOT / "stages/register.py"]
    writers = [subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE) for root in roots]
    said = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 3, said
    decisions = [json.loads((root / "data/registry/decision.json").read_text()) for root in roots]
    assert {(decision["version"], decision["champion"]) for decision in decisions} == {(1, True)}
    client = connect(tmp_path)
    assert len(client.search_model_versions(f"name='{NAME}'")) == 1
    assert [change.after for change in promotion_history(client, NAME)] == [1]


WRITER = """
import sys
from pathlib import Path
from cifar_resnet import tracking
from cifar_resnet.params.sections import TrackingParams

root, name = Path(sys.argv[1]), sys.argv[2]
params = TrackingParams(enabled=True, system_metrics=True)
with tracking.training_run(root, name, root / "data/scratch" / name, params, alive=lambda _: True) as run:
    for epoch in range(1, 51):
        run.epoch({"train_loss": epoch / 7, "train_accuracy": epoch / 50, "validation_loss": 0.5}, epoch)
print(run.id)
"""


def test_four_writers_in_one_new_sqlite_database_lose_no_metric(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path, str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    said = [writer.communicate() for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4, said
    assert not any("locked" in error for _, error in said)
    client = connect(tmp_path)
    for out, _ in said:
        for name in ("train_loss", "train_accuracy", "validation_loss"):
            history = client.get_metric_history(out.split()[-1], name)
            assert sorted(metric.step for metric in history) == list(range(1, 51))


def test_four_workers_search_on_postgresql_and_the_trial_of_a_killed_one_is_made_by_another(
    project: Path, postgresql: str, tmp_path: Path
) -> None:
    """SIGKILL in the middle of a trial: none is lost, none counted twice, none stuck."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepared").symlink_to(project / "data/prepared")
    write_params(
        tmp_path,
        search={
            "trials": 12,
            "epochs": 20,
            "storage": f"{postgresql}/search",
            "heartbeat_timeout_seconds": 60,
            "pruner": "none",
        },
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cifar_resnet", "search"]
    logs = [tmp_path / f"{number}.log" for number in range(4)]
    workers = []
    for log in logs:
        with log.open("w") as said:
            workers.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=said, stderr=said))

    def study() -> Study:
        return Study(tmp_path, load_params(tmp_path / "params.yaml"))

    end = time.monotonic() + 5 * START_SECONDS
    victim = None
    while victim is None:
        assert time.monotonic() < end, [log.read_text() for log in logs]
        time.sleep(1)
        if sum(each.outcome == "running" and each.epochs > 0 for each in results(study)) >= 2:
            running = next(each for each in study().study.trials if each.state.name == "RUNNING" and each.user_attrs)
            victim = running.number
            os.kill(int(running.user_attrs["worker"].split(":")[1]), signal.SIGKILL)
    codes = sorted(worker.wait(10 * START_SECONDS) for worker in workers)
    assert codes == [-signal.SIGKILL, 0, 0, 0], [log.read_text() for log in logs]

    found = results(study)
    assert [each.number for each in found if each.outcome == "killed"] == [victim]
    assert [each.retry_of for each in found if each.retry_of is not None] == [victim]
    assert len(found) == 13
    finished = [each for each in found if each.outcome == "finished"]
    assert len(finished) == len({str(each.changes) for each in finished}) == 12
    assert {str(each.changes) for each in found} == {str(each.changes) for each in finished}
    client = connect(tmp_path)
    for each in found:
        assert each.mlflow_run is not None
        status = client.get_run(each.mlflow_run).info.status
        assert status == ("KILLED" if each.number == victim else "FINISHED")


def test_a_database_that_mlflow_uses_is_refused_with_what_to_do(project: Path, server: str, postgresql: str) -> None:
    values = with_overrides(load_params(project / "params.yaml"), {"search.storage": f"{postgresql}/mlflow"})
    with pytest.raises(UserError, match="or name a database that the search has to itself"):
        Study(project, values, "data")


def results(study: Callable[[], Study]) -> list[Result]:
    """None as long as there is no study."""
    try:
        return study().results()
    except UserError:
        return []
