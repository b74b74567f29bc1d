"""A run in MLflow: what is written to it, and what is kept while MLflow does not answer."""

import logging
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow.data.meta_dataset
from mlflow import MlflowClient
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.time import get_current_time_millis

from cifar_resnet.files import read_json
from cifar_resnet.params.file import flatten
from cifar_resnet.progress import progress_bar
from cifar_resnet.training.history import EpochRecord, StepRecord

PER_EPOCH = "train_loss"
NOTE, TRAINED, RECIPE = "mlflow.note.content", "trained", "recipe"  # tags
EVALUATED = "evaluation"  # folder of artifacts
SAMPLE_SECONDS = 10.0  # between two looks at the machine
PATIENCE = 50  # after an attempt that failed, training goes on for so many times what that took: it costs 2 %


class Run:
    """A run, written to by its id; nothing is kept in global state.

    While MLflow cannot be used, what is written waits here, in order, until it can be used again.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.id = run_id
        before = client.get_run(run_id).data
        self.known, self.params_before = dict(before.tags), set(before.params)
        self.steps = {metric.step for metric in client.get_metric_history(run_id, PER_EPOCH)}
        self.pending: list[tuple[str, dict[str, Any]]] = []
        self.try_again_at = 0.0
        self.monitor: SystemMetricsMonitor | None = None
        self.sampled_at = 0.0

    def log_params(self, values: dict[str, dict[str, Any]]) -> None:
        """Log params.yaml's sections flat, but for what the run has already."""
        new = {key: value for key, value in flatten(values).items() if key not in self.params_before}
        self._write("log_batch", params=[Param(key, str(value)) for key, value in new.items()])

    def log_epoch(self, values: dict[str, float], epoch: int) -> None:
        """Log an epoch's metrics, unless the run has them from before an interruption."""
        if epoch not in self.steps:
            self.log_metrics(values | self._system_metrics(), step=epoch)

    def log_metrics(self, values: dict[str, float], step: int = 0) -> None:
        now = get_current_time_millis()
        self._write("log_batch", metrics=[Metric(key, value, now, step) for key, value in values.items()])

    def set_tags(self, values: dict[str, Any]) -> None:
        self._write("log_batch", tags=[RunTag(key, str(value)) for key, value in values.items()])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self._write("log_artifact", local_path=str(path), artifact_path=folder)

    def log_input(self, name: str, digest: str, address: str) -> None:
        data = mlflow.data.meta_dataset.MetaDataset(HTTPDatasetSource(address), name=name, digest=digest)
        used_for = InputTag("mlflow.data.context", "training")
        self._write("log_inputs", datasets=[DatasetInput(data._to_mlflow_entity(), [used_for])])

    def log_training_summary(self, history: list[EpochRecord], recipe: str) -> None:
        """Best and final values of the hold-out as metrics of their own, and what a person reads first."""
        accuracies = {each.epoch: each.validation_accuracy for each in history if each.validation_accuracy is not None}
        said = f"{len(history)} epochs in {sum(each.seconds for each in history) / 60:.1f} min."
        if accuracies:
            best, final = max(accuracies, key=accuracies.__getitem__), accuracies[max(accuracies)]
            found = {"best_epoch": best, "best_validation_accuracy": accuracies[best]}
            self.log_metrics(found | {"final_validation_accuracy": final})
            said += f" Hold-out: {final:.2%} right at the end, {accuracies[best]:.2%} after epoch {best}."
        self.known |= {RECIPE: recipe, TRAINED: said}
        self.set_tags({RECIPE: recipe, TRAINED: said, NOTE: self._note()})

    def log_evaluation(self, folder: Path) -> None:
        """What evaluate wrote into `folder`: its numbers as test_ metrics, its figures, and the result in words."""
        found = read_json(folder / "metrics.json")
        self.log_metrics(prefixed_test_metrics(folder))
        for figure in sorted(folder.rglob("*.png")):
            self.log_artifact(figure, EVALUATED)
        self.set_tags({NOTE: self._note(
            f"**{found['accuracy']:.2%}** of the test images right, {found['accuracy_tta']:.2%} with test-time "
            f"augmentation; {found['parameters']:,} parameters."
        )})  # fmt: skip

    def enable_system_metrics(self) -> None:
        """From now on, log how busy processors, memory, disk, network and GPUs are, averaged over an epoch."""
        logging.getLogger(SystemMetricsMonitor.__module__).setLevel(
            logging.WARNING
        )  # it tells of GPUs that are not there
        self.monitor = SystemMetricsMonitor(self.id, tracking_uri=self.client.tracking_uri)
        self.sample_system_metrics()  # the load of a processor is measured from one look to the next
        self._system_metrics()

    def sample_system_metrics(self) -> None:
        """Look at the machine, if it is time."""
        if self.monitor and time.monotonic() - self.sampled_at >= SAMPLE_SECONDS:
            self.monitor.collect_metrics()
            self.sampled_at = time.monotonic()

    def end(self, status: str | None = None, end_time: int | None = None) -> None:
        """Set the status, deliver what waits, and say so if something cannot be.

        Args:
            end_time: in milliseconds since 1970, now by default.
        """
        if status:
            self.pending.append(("set_terminated", {"status": status, "end_time": end_time}))
        self._deliver()
        if self.pending and status in {None, "FINISHED"}:
            print(f"MLflow lacks the end of run {self.id}: once it is back, `make mlflow-rebuild` delivers it")

    def _note(self, *first: str) -> str:
        return "\n\n".join([*first, *(self.known[key] for key in (TRAINED, RECIPE) if key in self.known)])

    def _system_metrics(self) -> dict[str, float]:
        if self.monitor is None:
            return {}
        found = {f"system/{name}": value for name, value in self.monitor.aggregate_metrics().items()}
        for each in self.monitor.monitors:
            each.clear_metrics()
        return found

    def _write(self, method: str, **values: Any) -> None:
        self.pending.append((method, values))
        if time.monotonic() >= self.try_again_at:
            self._deliver()

    def _deliver(self) -> None:
        began = time.monotonic()
        try:
            while self.pending:
                method, values = self.pending[0]
                getattr(self.client, method)(self.id, **values)
                del self.pending[0]
            self.try_again_at = 0.0
        except (MlflowException, OSError) as error:
            if not self.try_again_at:
                print(
                    f"{connection_error(self.client.tracking_uri, error)}: the work goes on, what is to be logged is kept"
                )
            now = time.monotonic()
            self.try_again_at = now + PATIENCE * (now - began)


class NullRun(Run):
    """Where nothing is tracked: an id by which a rebuild can know the run later, and nothing else."""

    def __init__(self, run_id: str | None = None) -> None:
        self.id = run_id or uuid.uuid4().hex
        self.known, self.params_before, self.steps, self.monitor = {}, set(), set(), None

    def enable_system_metrics(self) -> None:
        pass

    def _write(self, method: str, **values: Any) -> None:
        pass

    def end(self, status: str | None = None, end_time: int | None = None) -> None:
        pass


def prefixed_test_metrics(folder: Path) -> dict[str, float]:
    """The numbers that evaluate wrote into `folder`, under the names that they have in MLflow."""
    path = folder / "metrics.json"
    found = read_json(path) if path.exists() else {}
    return {f"test_{name}": value for name, value in found.items() if isinstance(value, int | float)}


def connection_error(uri: str, error: Exception) -> str:
    """What is wrong, in a line without the password that an address may hold."""
    address = urlsplit(uri)
    shown = address._replace(netloc=address.hostname or "").geturl()
    said = " ".join(str(error).replace(address.netloc or uri, address.hostname or uri).split())[:200]
    return f"MLflow at {shown} cannot be used ({said})"


def follow_training(
    records: Iterable[StepRecord | EpochRecord], history: list[EpochRecord], epochs: int, run: Run
) -> None:
    """Show the training's progress and log its epochs to the run, first those from before an interruption."""
    for finished in history:
        run.log_epoch(finished.metrics(), finished.epoch)
    with progress_bar("train", epochs) as bar:
        for record in records:
            run.sample_system_metrics()
            if isinstance(record, StepRecord):
                bar.update(record.epoch - 1 + record.step / record.steps, record.line(epochs))
            else:
                bar.print(record.line(epochs))
                run.log_epoch(record.metrics(), record.epoch)
