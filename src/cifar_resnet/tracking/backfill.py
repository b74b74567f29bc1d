"""MLflow rebuilt from DVC's files: the workspace, HEAD and every experiment, each run once."""

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from cifar_resnet.errors import UserError
from cifar_resnet.files import read_json
from cifar_resnet.params.file import load_params, params_summary, raw_sections
from cifar_resnet.tracking.client import ORIGINAL_RUN_TAG, connect, create_run, find_run, registry_lock, require_mlflow
from cifar_resnet.tracking.run import EVALUATED, RECIPE, Run, prefixed_test_metrics
from cifar_resnet.training.history import EpochRecord, read_history
from cifar_resnet.versioning import revisions
from cifar_resnet.versioning.provenance import last_commit_of, reproduce_command, run_name
from cifar_resnet.versioning.revisions import Revision

CONFIG, HISTORY, WEIGHTS = "data/model/model.json", "data/model/history.csv", "data/model/model.safetensors"
STATISTICS = "data/prepared/statistics.json"
EVALUATION = "data/evaluation"
COMPLETE = "all of its run is there"
FILES = ("params.yaml", CONFIG, HISTORY, STATISTICS, f"{EVALUATION}/metrics.json", f"{EVALUATION}/**/*.png")


def backfill_runs(root: Path) -> None:
    """Add the runs that MLflow lacks, complete those that broke off, and say which."""
    client, done = connect(root), dict[str, str]()
    with registry_lock(client, root), require_mlflow(client):
        for revision in revisions.list_revisions(root):
            with tempfile.TemporaryDirectory() as name:
                revisions.copy_revision_files(root, revision, FILES, Path(name))
                if not all((Path(name) / path).exists() for path in (CONFIG, HISTORY)):
                    print(f"{revision.name}: no trained model")
                    continue
                original = read_provenance(Path(name))["mlflow_run"]
                if original not in done:
                    done[original] = backfill_run(client, root, revision, Path(name), original)
                    print(f"{revision.name}: {done[original]}")
    whole = sum(said == COMPLETE for said in done.values())
    print(f"rebuild: {len(done)} runs, {whole} of them needed nothing")
    if whole < len(done):
        print("rebuild: where the registry is lost too, `dvc repro --force --single-item register` fills it again")


def backfill_run(client: MlflowClient, root: Path, revision: Revision, folder: Path, original: str) -> str:
    """Add or complete the run of the model in `folder`; returns what was done, in words."""
    history, found = read_history(folder / HISTORY), find_run(client, original)
    lacking = [] if found is None else missing_parts(client, found, folder, history)
    if found and not lacking:
        return COMPLETE
    seconds = revision.seconds or int((root / HISTORY).stat().st_mtime)
    start = 1000 * int(seconds - sum(record.seconds for record in history))
    run = Run(client, found or create_run(client, *run_name_and_tags(root, revision, folder, original), start))
    write_run(run, root, revision, folder, history)
    run.end("FINISHED", None if found else 1000 * seconds)
    if run.pending:
        raise UserError(f"run {run.id} is not complete; mend MLflow and run the same command again")
    return f"run {run.id} gets {', '.join(lacking)}" if found else f"run {run.id} added, {len(history)} epochs"


def missing_parts(client: MlflowClient, run_id: str, folder: Path, history: list[EpochRecord]) -> list[str]:
    """What the files hold and the run does not, in words."""
    run, epochs = client.get_run(run_id), Run(client, run_id).steps
    metrics, stored = run.data.metrics, {each.path for each in client.list_artifacts(run_id)}
    pictures = {each.path for each in client.list_artifacts(run_id, EVALUATED)}
    lacking = {
        f"{len(history) - len(epochs)} epochs": {record.epoch for record in history} - epochs,
        "the end": run.info.status != "FINISHED" or RECIPE not in run.data.tags or "history.csv" not in stored,
        "test results": prefixed_test_metrics(folder / EVALUATION).items() - metrics.items(),
        "figures": {f"{EVALUATED}/{path.name}" for path in (folder / EVALUATION).rglob("*.png")} - pictures,
    }
    return [name for name, something in lacking.items() if something]


def write_run(run: Run, root: Path, revision: Revision, folder: Path, history: list[EpochRecord]) -> None:
    """Write all that the files hold; what the run has already stays one."""
    text, provenance = (folder / "params.yaml").read_text(encoding="utf-8"), read_provenance(folder)
    run.log_params({name: keys for name, keys in logged_params(folder).items() if name in {"model", "train"}})
    if (folder / STATISTICS).exists():
        run.log_input("CIFAR-10 train", provenance["train_data"], read_json(folder / STATISTICS)["source"])
    for record in history:
        run.log_epoch(record.metrics(), record.epoch)
    run.log_artifact(folder / HISTORY)
    kept = last_commit_of(root, CONFIG, revision.commit)  # later changes had no part in it
    run.log_training_summary(history, reproduce_command(root, provenance.get("git_commit", ""), text, kept))
    run.set_tags({"train_data": provenance["train_data"], "model": revisions.dvc_md5(root, revision, WEIGHTS)})
    if (folder / EVALUATION / "metrics.json").exists():
        run.log_evaluation(folder / EVALUATION)


def run_name_and_tags(root: Path, revision: Revision, folder: Path, original: str) -> tuple[str, dict[str, str]]:
    """What the run had where it trained; its tag ORIGINAL is by what the next rebuild knows it."""
    provenance, text = read_provenance(folder), (folder / "params.yaml").read_text(encoding="utf-8")
    tags = {key: value for key, value in provenance.items() if key.startswith(("git_", "dvc_", "mlflow.", "params"))}
    name = run_name(root, text, provenance.get("git_commit", ""))
    with suppress(UserError):  # the params.yaml of other code than this
        name = name or params_summary(load_params(folder / "params.yaml"))
    return name or revision.name, tags | {ORIGINAL_RUN_TAG: original}


def logged_params(folder: Path) -> dict[str, dict[str, Any]]:
    """The values of params.yaml as train logs them, or as they stand there if that is of other code than this."""
    try:
        return load_params(folder / "params.yaml").model_dump()
    except UserError:
        return raw_sections((folder / "params.yaml").read_text(encoding="utf-8"))


def read_provenance(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / CONFIG)["provenance"]
    return found
