"""Backfill: adds missing runs to MLflow from DVC's files, for the workspace, HEAD and every experiment."""

import shutil
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from cifar_resnet.errors import UserError
from cifar_resnet.files import atomic_write, read_json, read_object
from cifar_resnet.params.file import flatten, load_params, params_summary, raw_sections, replace_values
from cifar_resnet.tracking.client import ORIGINAL_RUN_TAG, connect, create_run, find_run, registry_lock, require_mlflow
from cifar_resnet.tracking.run import EVALUATION_ARTIFACTS, REPRODUCE_TAG, Run, prefixed_test_metrics
from cifar_resnet.training.history import EpochRecord, read_history
from cifar_resnet.versioning import revisions
from cifar_resnet.versioning.provenance import (
    is_of_another_training,
    last_commit_of,
    recorded_params,
    reproduce_command,
    run_name,
    training_tags,
    with_experiment,
)
from cifar_resnet.versioning.revisions import Revision

CONFIG, HISTORY, WEIGHTS = "data/model/model.json", "data/model/history.csv", "data/model/model.safetensors"
STATISTICS = "data/prepared/statistics.json"
EVALUATION = "data/evaluation"
METRICS = f"{EVALUATION}/metrics.json"
COMPLETE = "complete"
REGISTER_INPUTS = (CONFIG, WEIGHTS, METRICS, f"{EVALUATION}/predictions.csv")
FILES = ("params.yaml", "dvc.lock", CONFIG, HISTORY, STATISTICS, METRICS, f"{EVALUATION}/**/*.png")


def backfill_runs(root: Path) -> None:
    """Add the missing runs to MLflow, complete the incomplete ones, and print a line for each revision.

    Raises:
        UserError: at the end, if a revision was left out because its files are damaged.
    """
    client, results, evaluated, damaged = connect(root), dict[str, str](), set[str](), list[str]()
    with registry_lock(client, root), require_mlflow(client):
        for revision in revisions.list_revisions(root):
            with tempfile.TemporaryDirectory() as name:
                revisions.copy_revision_files(root, revision, FILES, Path(name))
                if not all((Path(name) / path).exists() for path in (CONFIG, HISTORY)):
                    print(f"{revision.name}: no trained model")
                    continue
                restore_training_params(root, revision, Path(name))
                try:
                    check_files(Path(name))
                except UserError as error:
                    damaged.append(revision.name)
                    print(f"{revision.name}: {str(error).replace(f'{name}/', '')}")
                    continue
                delete_foreign_evaluation(Path(name))
                original = read_provenance(Path(name))["mlflow_run"]
                has_evaluation = (Path(name) / METRICS).exists()
                if original in results and (original in evaluated or not has_evaluation):
                    continue
                if has_evaluation:
                    evaluated.add(original)
                result = backfill_run(client, root, revision, Path(name), original)
                if result != COMPLETE or original not in results:
                    results[original] = result
                    print(f"{revision.name}: {result}")
    num_complete = sum(result == COMPLETE for result in results.values())
    print(f"backfill: {len(results)} runs, {num_complete} already complete")
    if damaged:
        raise UserError(f"the files of {', '.join(damaged)} are damaged, see above; all others were added")
    if num_complete < len(results):
        print(f"backfill: {registry_advice(root)}")


def check_files(folder: Path) -> None:
    """
    Raises:
        UserError: if a file that backfill needs is damaged.
    """
    provenance = read_object(folder / CONFIG, "provenance")["provenance"]
    missing = [key for key in ("mlflow_run", "train_data") if key not in provenance]
    if missing:
        raise UserError(f"{folder / CONFIG} is damaged (no {', '.join(missing)} in provenance)")
    read_history(folder / HISTORY)
    for path, keys in ((METRICS, ("accuracy", "accuracy_tta", "parameters")), (STATISTICS, ("source",))):
        if (folder / path).exists():
            read_object(folder / path, *keys)


def restore_training_params(root: Path, revision: Revision, folder: Path) -> None:
    """Give params.yaml the values of the training: it can be edited since, and a later commit can have other keys."""
    commit = last_commit_of(root, CONFIG, revision.commit)
    if commit:
        revisions.copy_revision_files(root, replace(revision, commit=commit), ["params.yaml", "dvc.lock"], folder)
    path = folder / "params.yaml"
    text = path.read_text(encoding="utf-8")
    sections, recorded = raw_sections(text), recorded_params(folder)
    values, edited = flatten({name: recorded[name] for name in recorded if name in sections}), flatten(sections)
    if changed := {key: value for key, value in values.items() if edited.get(key, ...) != value}:
        with atomic_write(path) as temporary:
            temporary.write_text(replace_values(text, changed), encoding="utf-8")


def delete_foreign_evaluation(folder: Path) -> None:
    """Delete an evaluation of another training, for example after `dvc repro train` alone."""
    if (folder / METRICS).exists() and is_of_another_training(read_json(folder / METRICS), read_json(folder / CONFIG)):
        shutil.rmtree(folder / EVALUATION)


def registry_advice(root: Path) -> str:
    """The commands that restore a lost registry."""
    missing = [path for path in REGISTER_INPUTS if not (root / path).exists()]
    reason = f"{', '.join(missing)} is missing" if missing else ""
    if not missing and is_of_another_training(read_object(root / METRICS), read_object(root / CONFIG)):
        reason = f"{EVALUATION} is of another training"
    first = f"`dvc repro evaluate`, because {reason}, then " if reason else ""
    return f"to restore a lost registry as well, run {first}`dvc repro --force --single-item register`"


def backfill_run(client: MlflowClient, root: Path, revision: Revision, folder: Path, original: str) -> str:
    """Add or complete the run of the model in `folder`.

    Args:
        folder: holds the revision's files.
        original: id of the run where the model was trained.

    Returns:
        What was done, for a message.

    Raises:
        UserError: if MLflow did not accept everything.
    """
    history, run_id = read_history(folder / HISTORY), find_run(client, original)
    missing = [] if run_id is None else missing_parts(client, run_id, folder, history)
    if run_id and not missing:
        return COMPLETE
    seconds = revision.seconds or int((root / HISTORY).stat().st_mtime)
    start = 1000 * int(seconds - sum(record.seconds for record in history))
    run = Run(client, run_id or create_run(client, *run_name_and_tags(root, revision, folder, original), start))
    write_run(run, root, revision, folder, history)
    run.end("FINISHED", None if run_id else 1000 * seconds)
    if run.pending:
        raise UserError(f"run {run.id} is still incomplete; make MLflow reachable and run the same command again")
    return f"run {run.id}: added {', '.join(missing)}" if run_id else f"run {run.id}: added, {len(history)} epochs"


def missing_parts(client: MlflowClient, run_id: str, folder: Path, history: list[EpochRecord]) -> list[str]:
    """Names of the parts that the files hold and the run does not."""
    run, logged_epochs = client.get_run(run_id), Run(client, run_id).logged_epochs
    metrics, artifacts = run.data.metrics, {artifact.path for artifact in client.list_artifacts(run_id)}
    figures = {artifact.path for artifact in client.list_artifacts(run_id, EVALUATION_ARTIFACTS)}
    expected_figures = {f"{EVALUATION_ARTIFACTS}/{path.name}" for path in (folder / EVALUATION).rglob("*.png")}
    missing_epochs = {record.epoch for record in history} - logged_epochs
    missing = {
        f"{len(history) - len(logged_epochs)} epochs": missing_epochs,
        "summary": run.info.status != "FINISHED"
        or REPRODUCE_TAG not in run.data.tags
        or "history.csv" not in artifacts,
        "test results": prefixed_test_metrics(folder / EVALUATION).items() - metrics.items(),
        "figures": expected_figures - figures,
    }
    return [name for name, items in missing.items() if items]


def write_run(run: Run, root: Path, revision: Revision, folder: Path, history: list[EpochRecord]) -> None:
    """Log everything that the files hold; parameters and epochs that the run already has stay unchanged."""
    text, provenance = (folder / "params.yaml").read_text(encoding="utf-8"), read_provenance(folder)
    run.log_params({name: values for name, values in params_to_log(folder).items() if name in {"model", "train"}})
    if (folder / STATISTICS).exists():
        run.log_train_data(read_json(folder / STATISTICS)["source"], provenance["train_data"])
    for record in history:
        run.log_epoch(record.metrics(), record.epoch)
    run.log_artifact(folder / HISTORY)
    commit = last_commit_of(root, CONFIG, revision.commit)  # later commits did not take part in the training
    run.log_training_summary(history, reproduce_command(root, provenance, text, commit))
    run.set_tags({"train_data": provenance["train_data"], "model": revisions.dvc_md5(root, revision, WEIGHTS)})
    if (folder / METRICS).exists():
        run.log_evaluation(folder / EVALUATION)


def run_name_and_tags(root: Path, revision: Revision, folder: Path, original: str) -> tuple[str, dict[str, str]]:
    """The name and tags that the run had where it was trained, and the tag by which a later backfill finds it."""
    provenance, text = read_provenance(folder), (folder / "params.yaml").read_text(encoding="utf-8")
    name = run_name(root, text, provenance.get("git_commit", ""))
    with suppress(UserError):  # params.yaml of another version of the code
        name = name or params_summary(load_params(folder / "params.yaml"))
    return with_experiment(name or revision.name, provenance), training_tags(provenance) | {ORIGINAL_RUN_TAG: original}


def params_to_log(folder: Path) -> dict[str, dict[str, Any]]:
    """The values of params.yaml as the train stage logs them, or unchanged if this version cannot load it."""
    try:
        return load_params(folder / "params.yaml").model_dump()
    except UserError:
        return raw_sections((folder / "params.yaml").read_text(encoding="utf-8"))


def read_provenance(folder: Path) -> dict[str, Any]:
    provenance: dict[str, Any] = read_json(folder / CONFIG)["provenance"]
    return provenance
