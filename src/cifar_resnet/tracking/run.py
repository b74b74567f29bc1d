"""A run in MLflow. Writes are queued while MLflow is not reachable."""

import logging
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlflow.data.meta_dataset
from mlflow import MlflowClient
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.sources import LocalArtifactDatasetSource
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.time import get_current_time_millis

from cifar_resnet.data.dataset_name import dataset_name
from cifar_resnet.files import read_json
from cifar_resnet.params.file import flatten
from cifar_resnet.progress import progress_bar
from cifar_resnet.tracking.location import connection_error
from cifar_resnet.training.history import EpochRecord, StepRecord

EPOCH_METRIC = "train_loss"  # its steps are the logged epochs
NOTE_TAG, SUMMARY_TAG, REPRODUCE_TAG = "mlflow.note.content", "training_summary", "reproduce"
EVALUATION_ARTIFACTS = "evaluation"  # artifact folder
SAMPLE_SECONDS = 10.0  # between two samples of the system metrics
RETRY_FACTOR = 50  # wait this many times the duration of a failed attempt; retries then cost at most 2 % of the time


class Run:
    """An MLflow run, addressed by its id, without global state.

    While MLflow is not reachable, writes wait in `pending`, in order, until it is reachable again.

    Args:
        completed_by: the command that completes the run if it ends with pending writes, for a message.
    """

    def __init__(self, client: MlflowClient, run_id: str, completed_by: str = "make mlflow-backfill") -> None:
        self.client = client
        self.id = run_id
        self.completed_by = completed_by
        stored = client.get_run(run_id).data
        self.tags, self.logged_params = dict(stored.tags), set(stored.params)
        self.logged_epochs = {metric.step for metric in client.get_metric_history(run_id, EPOCH_METRIC)}
        self.pending: list[tuple[str, dict[str, Any]]] = []
        self.retry_at = 0.0
        self.monitor: SystemMetricsMonitor | None = None
        self.sampled_at = 0.0

    def log_params(self, values: dict[str, dict[str, Any]]) -> None:
        """Log sections of params.yaml under flat keys; keys that the run already has stay unchanged."""
        new = {key: value for key, value in flatten(values).items() if key not in self.logged_params}
        self._write("log_batch", params=[Param(key, str(value)) for key, value in new.items()])

    def log_epoch(self, values: dict[str, float], epoch: int) -> None:
        """Log an epoch's metrics, unless the run already has them from before an interruption."""
        if epoch not in self.logged_epochs:
            self.log_metrics(values | self._system_metrics(), step=epoch)

    def log_metrics(self, values: dict[str, float], step: int = 0) -> None:
        now = get_current_time_millis()
        self._write("log_batch", metrics=[Metric(key, value, now, step) for key, value in values.items()])

    def set_tags(self, values: dict[str, Any]) -> None:
        self._write("log_batch", tags=[RunTag(key, str(value)) for key, value in values.items()])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self._write("log_artifact", local_path=str(path), artifact_path=folder)

    def log_train_data(self, source: str, digest: str) -> None:
        """Log the training images, with the source and the hash of statistics.json and train_images.npy."""
        name, is_address = f"{dataset_name(source)} train", "://" in source
        data_source = HTTPDatasetSource(source) if is_address else LocalArtifactDatasetSource(source)
        data = mlflow.data.meta_dataset.MetaDataset(data_source, name=name, digest=digest)
        context = InputTag("mlflow.data.context", "training")
        self._write("log_inputs", datasets=[DatasetInput(data._to_mlflow_entity(), [context])])

    def log_training_summary(self, history: list[EpochRecord], reproduce: str) -> None:
        """Log the best and final validation accuracy as metrics, and a summary as the run's description.

        Args:
            reproduce: Markdown with the commands that repeat the training.
        """
        accuracies = {
            record.epoch: record.validation_accuracy for record in history if record.validation_accuracy is not None
        }
        summary = f"{len(history)} epochs in {sum(record.seconds for record in history) / 60:.1f} min."
        if accuracies:
            best, final = max(accuracies, key=accuracies.__getitem__), accuracies[max(accuracies)]
            metrics = {"best_epoch": best, "best_validation_accuracy": accuracies[best]}
            self.log_metrics(metrics | {"final_validation_accuracy": final})
            summary += f" Validation accuracy: {final:.2%} (final), {accuracies[best]:.2%} (best, epoch {best})."
        self.tags |= {REPRODUCE_TAG: reproduce, SUMMARY_TAG: summary}
        self.set_tags({REPRODUCE_TAG: reproduce, SUMMARY_TAG: summary, NOTE_TAG: self._description()})

    def log_evaluation(self, folder: Path) -> None:
        """Log the output of the evaluate stage: its numbers as test_ metrics, its figures, and a description."""
        metrics = read_json(folder / "metrics.json")
        self.log_metrics(prefixed_test_metrics(folder))
        for figure in sorted(folder.rglob("*.png")):
            self.log_artifact(figure, EVALUATION_ARTIFACTS)
        result = (
            f"**{metrics['accuracy']:.2%}** accuracy on the test set, {metrics['accuracy_tta']:.2%} with test-time "
            f"augmentation; {metrics['parameters']:,} parameters."
        )
        self.set_tags({NOTE_TAG: self._description(result)})

    def enable_system_metrics(self) -> None:
        """Log the load of CPU, memory, disk, network and GPU with every epoch, averaged over the epoch."""
        logger = logging.getLogger(SystemMetricsMonitor.__module__)
        logger.setLevel(logging.WARNING)  # at INFO it reports every missing GPU
        self.monitor = SystemMetricsMonitor(self.id, tracking_uri=self.client.tracking_uri)
        self.sample_system_metrics()  # CPU load is measured from one sample to the next
        self._system_metrics()

    def sample_system_metrics(self) -> None:
        """Sample the load if SAMPLE_SECONDS have passed since the last sample."""
        if self.monitor and time.monotonic() - self.sampled_at >= SAMPLE_SECONDS:
            self.monitor.collect_metrics()
            self.sampled_at = time.monotonic()

    def end(self, status: str | None = None, end_time: int | None = None) -> None:
        """Set the status and send the pending writes; print a message if some cannot be sent.

        Args:
            end_time: in milliseconds since 1970, now by default.
        """
        if status:
            self.pending.append(("set_terminated", {"status": status, "end_time": end_time}))
        self._send_pending()
        if self.pending and status in {None, "FINISHED"}:
            print(f"MLflow run {self.id} is incomplete; `{self.completed_by}` completes it once MLflow is reachable")

    def _description(self, *first: str) -> str:
        return "\n\n".join([*first, *(self.tags[key] for key in (SUMMARY_TAG, REPRODUCE_TAG) if key in self.tags)])

    def _system_metrics(self) -> dict[str, float]:
        if self.monitor is None:
            return {}
        metrics = {f"system/{name}": value for name, value in self.monitor.aggregate_metrics().items()}
        for monitor in self.monitor.monitors:
            monitor.clear_metrics()
        return metrics

    def _write(self, method: str, **values: Any) -> None:
        self.pending.append((method, values))
        if time.monotonic() >= self.retry_at:
            self._send_pending()

    def _send_pending(self) -> None:
        start = time.monotonic()
        try:
            while self.pending:
                method, values = self.pending[0]
                getattr(self.client, method)(self.id, **values)
                del self.pending[0]
            self.retry_at = 0.0
        except (MlflowException, OSError) as error:
            if not self.retry_at:
                print(f"{connection_error(self.client.tracking_uri, error)}; continuing, metrics are logged later")
            now = time.monotonic()
            self.retry_at = now + RETRY_FACTOR * (now - start)


class NullRun(Run):
    """A run that logs nothing. It only has an id, under which a later backfill can add the run."""

    def __init__(self, run_id: str | None = None) -> None:
        self.id = run_id or uuid.uuid4().hex
        self.tags, self.logged_params, self.logged_epochs, self.monitor = {}, set(), set(), None

    def enable_system_metrics(self) -> None:
        pass

    def _write(self, method: str, **values: Any) -> None:
        pass

    def end(self, status: str | None = None, end_time: int | None = None) -> None:
        pass


def prefixed_test_metrics(folder: Path) -> dict[str, float]:
    """The numbers in the metrics.json of `folder`, under their MLflow names; empty without the file."""
    path = folder / "metrics.json"
    metrics = read_json(path) if path.exists() else {}
    return {f"test_{name}": value for name, value in metrics.items() if isinstance(value, int | float)}


def follow_training(
    records: Iterable[StepRecord | EpochRecord], history: list[EpochRecord], epochs: int, run: Run
) -> None:
    """Show the progress of a training and log its epochs.

    Args:
        history: epochs from before an interruption; they are logged first.
    """
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
