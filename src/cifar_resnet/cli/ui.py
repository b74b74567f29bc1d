"""`cifar-resnet ui`: MLflow's web pages, with the addresses of the run table and of the champion."""

from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_ui_arguments(parser: ArgumentParser) -> None:
    parser.epilog = "With a server in MLFLOW_TRACKING_URI, prints the addresses only."


def ui_command(root: Path, arguments: Namespace) -> int:  # noqa: ARG001
    from cifar_resnet.params.file import load_params
    from cifar_resnet.tracking.server import show_pages

    show_pages(root, load_params(root / "params.yaml").register_.model_name)
    return 0
