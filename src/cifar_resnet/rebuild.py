"""MLflow rebuilt from DVC's files: the workspace, HEAD and every experiment, each run once."""

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from cifar_resnet import champion, lineage, params, records, revisions, tracking
from cifar_resnet.errors import UserError
from cifar_resnet.files import read_json
from cifar_resnet.records import EpochRecord
from cifar_resnet.revisions import Revision
from cifar_resnet.runs import EVALUATED, RECIPE, Run, test_metrics

CARD, HISTORY, WEIGHTS = "data/model/model.json", "data/model/history.csv", "data/model/model.safetensors"
STATISTICS = "data/prepared/statistics.json"
EVALUATION = "data/evaluation"
WHOLE = "all of its run is there"
FILES = ("params.yaml", CARD, HISTORY, STATISTICS, f"{EVALUATION}/metrics.json", f"{EVALUATION}/*.png")


def main(root: Path) -> None:
    """Add the runs that MLflow lacks, complete those that broke off, and say which."""
    client, done = tracking.connect(root), dict[str, str]()
    with champion.locked(client, root), tracking.needed(client):
        for revision in revisions.known(root):
            with tempfile.TemporaryDirectory() as name:
                revisions.bring(root, revision, FILES, Path(name))
                if not all((Path(name) / path).exists() for path in (CARD, HISTORY)):
                    print(f"{revision.name}: no trained model")
                    continue
                original = provenance_of(Path(name))["mlflow_run"]
                if original not in done:
                    done[original] = show(client, root, revision, Path(name), original)
                    print(f"{revision.name}: {done[original]}")
    whole = sum(said == WHOLE for said in done.values())
    print(f"rebuild: {len(done)} runs, {whole} of them needed nothing")
    if whole < len(done):
        print("rebuild: where the registry is lost too, `dvc repro --force --single-item register` fills it again")


def show(client: MlflowClient, root: Path, revision: Revision, folder: Path, original: str) -> str:
    """Add or complete the run of the model in `folder`; returns what was done, in words."""
    history, found = records.read(folder / HISTORY), tracking.find(client, original)
    lacking = [] if found is None else missing(client, found, folder, history)
    if found and not lacking:
        return WHOLE
    seconds = revision.seconds or int((root / HISTORY).stat().st_mtime)
    start = 1000 * int(seconds - sum(record.seconds for record in history))
    run = Run(client, found or tracking.create(client, *name_and_tags(root, revision, folder, original), start))
    fill(run, root, revision, folder, history)
    run.end("FINISHED", None if found else 1000 * seconds)
    if run.waiting:
        raise UserError(f"run {run.id} is not complete; mend MLflow and run the same command again")
    return f"run {run.id} gets {', '.join(lacking)}" if found else f"run {run.id} added, {len(history)} epochs"


def missing(client: MlflowClient, run_id: str, folder: Path, history: list[EpochRecord]) -> list[str]:
    """What the files hold and the run does not, in words."""
    run, epochs = client.get_run(run_id), Run(client, run_id).steps
    metrics, stored = run.data.metrics, {each.path for each in client.list_artifacts(run_id)}
    pictures = {each.path for each in client.list_artifacts(run_id, EVALUATED)}
    lacking = {
        f"{len(history) - len(epochs)} epochs": {record.epoch for record in history} - epochs,
        "the end": run.info.status != "FINISHED" or RECIPE not in run.data.tags or "history.csv" not in stored,
        "test results": test_metrics(folder / EVALUATION).items() - metrics.items(),
        "figures": {f"{EVALUATED}/{path.name}" for path in (folder / EVALUATION).glob("*.png")} - pictures,
    }
    return [name for name, something in lacking.items() if something]


def fill(run: Run, root: Path, revision: Revision, folder: Path, history: list[EpochRecord]) -> None:
    """Write all that the files hold; what the run has already stays one."""
    text, provenance = (folder / "params.yaml").read_text(encoding="utf-8"), provenance_of(folder)
    run.params({name: keys for name, keys in sections(folder).items() if name in {"model", "train"}})
    if (folder / STATISTICS).exists():
        run.dataset("CIFAR-10 train", provenance["train_data"], read_json(folder / STATISTICS)["source"])
    for record in history:
        run.epoch(record.metrics(), record.epoch)
    run.artifact(folder / HISTORY)
    kept = lineage.keeper(root, CARD, revision.commit)  # later changes had no part in it
    run.trained(history, lineage.recipe(root, provenance.get("git_commit", ""), text, kept))
    run.tags({"train_data": provenance["train_data"], "model": revisions.md5(root, revision, WEIGHTS)})
    if (folder / EVALUATION / "metrics.json").exists():
        run.evaluated(folder / EVALUATION)


def name_and_tags(root: Path, revision: Revision, folder: Path, original: str) -> tuple[str, dict[str, str]]:
    """What the run had where it trained; its tag ORIGINAL is by what the next rebuild knows it."""
    provenance, text = provenance_of(folder), (folder / "params.yaml").read_text(encoding="utf-8")
    tags = {key: value for key, value in provenance.items() if key.startswith(("git_", "dvc_", "mlflow.", "params"))}
    name = lineage.title(root, text, provenance.get("git_commit", ""))
    with suppress(UserError):  # the params.yaml of other code than this
        name = name or params.summary(params.load(folder / "params.yaml"))
    return name or revision.name, tags | {tracking.ORIGINAL: original}


def sections(folder: Path) -> dict[str, dict[str, Any]]:
    """The values of params.yaml as train logs them, or as they stand there if that is of other code than this."""
    try:
        return params.load(folder / "params.yaml").model_dump()
    except UserError:
        return params.sections((folder / "params.yaml").read_text(encoding="utf-8"))


def provenance_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / CARD)["provenance"]
    return found
