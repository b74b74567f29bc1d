import socket
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest

from cifar_resnet.errors import UserError
from cifar_resnet.tracking import server
from cifar_resnet.tracking.client import connect, experiment_id
from cifar_resnet.tracking.server import free_port, page_addresses, show_pages

RUNS = "viewStateShareKey=accuracy&workflowType=machine_learning"


def test_the_addresses_are_those_of_the_run_table_and_of_the_champion(tmp_path: Path) -> None:
    client = connect(tmp_path)
    runs = f"#/experiments/{experiment_id(client)}/runs?{RUNS}"
    assert page_addresses(client, "model") == {"runs": runs}
    client.create_registered_model("model")
    for _ in range(2):
        client.create_model_version("model", source="/nowhere")
    models = "#/models?workflowType=machine_learning"
    assert page_addresses(client, "model") == {"runs": runs, "models": models}
    client.set_registered_model_alias("model", "champion", "2")
    champion = "#/models/model/versions/2?workflowType=machine_learning"
    assert page_addresses(client, "model") == {"runs": runs, "champion": champion}
    assert page_addresses(client, "another") == {"runs": runs, "models": models}


def test_a_port_in_use_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        used = [stack.enter_context(socket.socket()) for _ in range(2)]
        for candidate in used:
            candidate.bind(("127.0.0.1", 0))
            candidate.listen()
        ports = [candidate.getsockname()[1] for candidate in used]
        unused = stack.enter_context(socket.socket())
        unused.bind(("127.0.0.1", 0))
        unused_port = unused.getsockname()[1]
        unused.close()
        monkeypatch.setattr(server, "PORTS", [*ports, unused_port])
        assert free_port() == unused_port
        monkeypatch.setattr(server, "PORTS", ports)
        with pytest.raises(UserError, match=f"the ports {ports[0]} to {ports[1]} are all in use"):
            free_port()


def test_the_addresses_of_a_server_are_printed_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = connect(tmp_path)
    monkeypatch.setattr(server, "connect", lambda _: client)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example.org/path/")
    show_pages(tmp_path, "model")
    assert capsys.readouterr().out.splitlines() == [
        "MLflow is the server at https://mlflow.example.org/path/",
        f"runs: https://mlflow.example.org/path/#/experiments/{experiment_id(client)}/runs?{RUNS}",
    ]


def test_the_server_on_this_machine_is_reached_without_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(server, "START_SECONDS", 1.0)
    with HTTPServer(("127.0.0.1", 0), Healthy) as healthy:
        Thread(target=healthy.handle_request, daemon=True).start()
        process = SimpleNamespace(poll=lambda: None)
        server.wait_until_healthy(f"http://127.0.0.1:{healthy.server_port}", process)  # type: ignore[arg-type]
