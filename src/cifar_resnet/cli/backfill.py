"""`cifar-resnet backfill`: add the runs that MLflow is missing."""

from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_backfill_arguments(parser: ArgumentParser) -> None:
    parser.epilog = "Reads DVC's files of the workspace, HEAD and every experiment. Existing runs are kept."


def backfill_command(root: Path, arguments: Namespace) -> int:  # noqa: ARG001
    from cifar_resnet.params.file import load_params
    from cifar_resnet.tracking.backfill import backfill_runs

    load_params(root / "params.yaml")  # outside the project's root, this fails before MLflow creates a database
    backfill_runs(root)
    return 0
