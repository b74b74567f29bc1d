"""Runs of a search: one for the search, and below it one for each trial."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.entities import ViewType

from cifar_resnet.errors import UserError
from cifar_resnet.tracking.client import (
    connect,
    create_run,
    experiment_id,
    find_run,
    none_if_missing,
    require_mlflow,
)
from cifar_resnet.tracking.run import NullRun, Run
from cifar_resnet.versioning.provenance import provenance_tags

PARENT_TAG, TRIAL_TAG, OUTCOME_TAG = "mlflow.parentRunId", "trial", "outcome"
COMPLETED_BY = "make search"


def find_or_create_search_run(root: Path, run_id: str | None, name: str, values: dict[str, Any]) -> str:
    """The id of the search's run: `run_id`, or a new run if there is none or the database has lost it.

    Raises:
        UserError: if MLflow cannot be used.
    """
    client = connect(root)
    with require_mlflow(client):
        existing = find_run(client, run_id) if run_id else None
        if existing:
            return existing
        if run_id:
            print(f"MLflow has no run {run_id}, which belongs to this search; its trials are logged again to a new run")
        run = Run(client, create_run(client, name, provenance_tags(root)), COMPLETED_BY)
        run.log_params(values)
        return run.id


def create_trial_run(root: Path, number: int, parent: str, start_time: int | None = None) -> Run:
    """Create the run of a trial, which MLflow shows below `parent`; the caller ends it with `Run.end`.

    Args:
        start_time: in milliseconds since 1970, by default now.

    Raises:
        UserError: if MLflow cannot be used.
    """
    client = connect(root)
    tags = {PARENT_TAG: parent, TRIAL_TAG: str(number)}
    with require_mlflow(client):
        run_id = create_run(client, f"trial {number}", provenance_tags(root) | tags, start_time)
        return Run(client, run_id, COMPLETED_BY)


def create_trial_run_or_null(root: Path, number: int, parent: str | None) -> Run:
    """Like `create_trial_run`; a null run without a parent and, after a message, if MLflow cannot be used."""
    if parent is None:
        return NullRun()
    try:
        return create_trial_run(root, number, parent)
    except UserError as error:
        print(f"{error}; continuing, `{COMPLETED_BY}` logs trial {number} later")
        return NullRun()


def trial_runs(client: MlflowClient, parent: str) -> dict[int, MlflowRun]:
    """The runs below `parent` by the number of the trial, also deleted ones."""
    query, runs, token = f"tags.`{PARENT_TAG}` = '{parent}'", dict[int, MlflowRun](), None
    while True:
        page = client.search_runs([experiment_id(client)], query, ViewType.ALL, page_token=token)
        runs |= {int(run.data.tags[TRIAL_TAG]): run for run in page if TRIAL_TAG in run.data.tags}
        token = page.token
        if not token:
            return runs


def set_run_status(root: Path, run_id: str, status: str, *, only_from: Collection[str] = ()) -> None:
    """Set the status of a run, unless it is deleted or lost; prints a message if MLflow cannot be used.

    Args:
        status: FINISHED, FAILED, KILLED or RUNNING.
        only_from: change the status only if it is one of these; by default always.
    """
    try:
        client = connect(root)
        with require_mlflow(client):
            current = _current_status(client, run_id)
            if current is None or (only_from and current not in only_from):
                return
            if status == "RUNNING":
                client.update_run(run_id, status=status)
            else:
                client.set_terminated(run_id, status)
    except UserError as error:
        print(f"{error}; continuing, `{COMPLETED_BY}` sets the status of run {run_id} later")


def _current_status(client: MlflowClient, run_id: str) -> str | None:
    """The status of a run; None if it is deleted or not in the database."""
    run = none_if_missing(lambda: client.get_run(run_id))
    return str(run.info.status) if run is not None and run.info.lifecycle_stage == "active" else None
