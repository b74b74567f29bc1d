"""MLflow's web server on this machine, and the addresses of the pages to open first."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

from mlflow import MlflowClient

from cifar_resnet.errors import UserError
from cifar_resnet.tracking.client import connect, experiment_id, require_mlflow
from cifar_resnet.tracking.location import display_uri, project_home, tracking_uri
from cifar_resnet.tracking.view import VIEW

LOOPBACK = "127.0.0.1"
HOST = "mlflow.localhost"  # 127.0.0.1 to a browser, but MLflow does not open its assistant panel at this address
PORTS = range(5000, 5020)  # the first free one is taken
START_SECONDS = 300.0
TRAINING_MENU = "workflowType=machine_learning"  # otherwise MLflow shows its menu for generative AI


def show_pages(root: Path, model: str) -> None:
    """Print the addresses of the run table and of the champion; without a server, run one until Ctrl-C.

    Raises:
        UserError: if MLflow cannot be used, or the server cannot start or ends by itself.
    """
    client, uri = connect(root), tracking_uri(root)
    with require_mlflow(client):
        pages = page_addresses(client, model)
    if urlsplit(uri).scheme in ("http", "https"):
        print(f"MLflow is the server at {display_uri(uri)}")
        print_addresses(display_uri(uri).rstrip("/"), pages)
        return
    print("MLflow is starting, which takes seconds, or a minute on a busy machine", flush=True)
    with mlflow_server(uri, project_home(root)) as (port, server):
        print(f"MLflow runs at http://{LOOPBACK}:{port} until Ctrl-C")
        print_addresses(f"http://{HOST}:{port}", pages)
        try:
            server.wait()
        except KeyboardInterrupt:
            return
    raise UserError(f"MLflow at port {port} has ended with code {server.returncode}; run the same command again")


def print_addresses(server: str, pages: dict[str, str]) -> None:
    width = max(map(len, pages)) + 1
    for name, page in pages.items():
        print(f"{name + ':':{width}} {server}/{page}", flush=True)


def page_addresses(client: MlflowClient, model: str) -> dict[str, str]:
    """What follows the server in the addresses of the run table and of the champion, by name.

    Without a champion of `model`, that of the list of registered models, if there is one.
    """
    pages = {"runs": f"#/experiments/{experiment_id(client)}/runs?viewStateShareKey={VIEW}&{TRAINING_MENU}"}
    for registered in client.search_registered_models(f"name = '{model}'"):
        if "champion" in registered.aliases:
            version = registered.aliases["champion"]
            pages["champion"] = f"#/models/{quote(model, safe='')}/versions/{version}?{TRAINING_MENU}"
    if "champion" not in pages and client.search_registered_models(max_results=1):
        pages["models"] = f"#/models?{TRAINING_MENU}"
    return pages


@contextmanager
def mlflow_server(uri: str, folder: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run MLflow on the database `uri` while the block runs; yield (port on LOOPBACK, process).

    Args:
        folder: its working directory.

    Raises:
        UserError: if it does not start.
    """
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"]
    names = (HOST, LOOPBACK, "localhost")
    command += ["--allowed-hosts", ",".join(f"{name}:*" for name in names)]  # any port: it may be forwarded
    command += ["--cors-allowed-origins", f"http://{HOST}:{port}"]
    with tempfile.TemporaryFile() as log:
        environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": uri}  # other users cannot read its password there
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            wait_until_healthy(f"http://{LOOPBACK}:{port}", server)
            if server.poll() is not None:
                log.seek(0)
                lines = log.read().decode(errors="replace").split("\n")
                last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
                raise UserError(f"MLflow did not start: {last[:300]}")
            yield port, server
        finally:
            server.terminate()
            server.wait()


def free_port() -> int:
    """
    Raises:
        UserError: if all of PORTS are in use.
    """
    for port in PORTS:
        with socket.socket() as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port can rest a minute
            try:
                candidate.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise UserError(f"the ports {PORTS[0]} to {PORTS[-1]} are all in use; end one of the programs that use them")


def wait_until_healthy(address: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers or has ended.

    Raises:
        UserError: if it does neither for START_SECONDS.
    """
    end = time.monotonic() + START_SECONDS
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not reach this machine
    while server.poll() is None:
        try:
            with opener.open(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
        if time.monotonic() > end:
            raise UserError(f"MLflow is not reachable at {address} after {START_SECONDS:.0f} s; try again")
