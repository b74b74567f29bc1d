"""Worker of a search: takes trials from the study, alone or beside other workers, until all are done."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import torch

from cifar_resnet.device import disable_malloc_trim
from cifar_resnet.errors import stop_on_signal
from cifar_resnet.files import file_hash
from cifar_resnet.params.file import Params
from cifar_resnet.progress import progress_bar
from cifar_resnet.search.reporter import ProgressReporter
from cifar_resnet.search.study import Study, TakenOverError
from cifar_resnet.search.train_trial import PREPARED, SearchData, load_search_data, run_trial
from cifar_resnet.search.trial import SearchTrial
from cifar_resnet.tracking.search_runs import find_or_create_search_run, set_run_status

SCRATCH = "data/scratch"
POLL_SECONDS = 2.0  # between two checks of the trials that other workers train


def run_search(root: Path, params: Params, *, limit: int, minutes: float) -> Study:
    """Train trials until all workers together have `limit` trials or `minutes` have passed.

    Raises:
        KeyboardInterrupt: after SIGINT or SIGTERM; the running trial is queued again.
        UserError: if the study's database or MLflow cannot be used.
    """
    disable_malloc_trim()
    data = load_search_data(root, params)
    num_classes = len(data.statistics["classes"])
    weights = f", from weights {data.initial.weights_md5}" if data.initial else ""
    study = Study(root, params, (file_hash(root / PREPARED / "train_images.npy") + weights, num_classes))
    with study.require_storage():
        run_trials(root, study, data, limit=limit, minutes=minutes)
    return study


def run_trials(root: Path, study: Study, data: SearchData, *, limit: int, minutes: float) -> None:
    """Train the trials of this worker; the search's run in MLflow has the status RUNNING meanwhile."""
    search_run = open_search_run(root, study)
    if search_run:
        set_run_status(root, search_run, "RUNNING")
    deadline, closed_runs = time.monotonic() + 60 * minutes, set[str]()
    with stop_on_signal() as stop_event, progress_bar("search", limit) as bar:
        reporter = ProgressReporter(study, bar, limit, deadline)
        if reporter.done:
            bar.print(f"search: continues after {reporter.summary(study.results())}")
        try:
            while (trial := next_trial(root, study, reporter, stop_event, closed_runs)) is not None:
                try:
                    run_trial(root, study, trial, data, reporter, stop_event, search_run)
                except TakenOverError:
                    bar.print(f"trial {trial.number} was given to another worker: this worker's heartbeat was too late")
                gc.collect()
                reporter.refresh()
            reporter.refresh()  # the last trials may be other workers'
        finally:
            if search_run:
                set_run_status(root, search_run, search_status(study, limit))


def open_search_run(root: Path, study: Study) -> str | None:
    """The id of the search's MLflow run, a new one if there is none; None if tracking is disabled.

    Raises:
        UserError: if MLflow cannot be used.
    """
    search = study.params.search
    if not study.params.tracking.enabled:
        return None
    with study.lock():
        name, values = f"search {search.study}", {"search": search.model_dump()}
        run_id = find_or_create_search_run(root, study.mlflow_run, name, values)
        if run_id != study.mlflow_run:
            study.mlflow_run = run_id
    return run_id


def next_trial(
    root: Path, study: Study, reporter: ProgressReporter, stop_event: Event, closed_runs: set[str]
) -> SearchTrial | None:
    """The next trial, None if all trials have ended or the time is over.

    Waits while other workers train the last trials, because a trial of a worker that dies is queued again. The MLflow
    runs of failed and killed trials are ended and added to `closed_runs`, once for each worker.
    """
    is_tracked = study.params.tracking.enabled
    while time.monotonic() < reporter.deadline:
        if stop_event.is_set():
            raise KeyboardInterrupt("run the same command to continue")
        trial = study.ask(reporter.limit)
        results = study.results()
        for result in results:
            if not is_tracked or result.mlflow_run is None or result.mlflow_run in closed_runs:
                continue
            if result.outcome in {"killed", "failed"}:
                # a worker killed between run.end and study.tell leaves a finished run of a trial that is queued again
                statuses = ("RUNNING", "FINISHED") if result.outcome == "killed" else ("RUNNING",)
                set_run_status(root, result.mlflow_run, "KILLED", only_from=statuses)
                closed_runs.add(result.mlflow_run)
        if trial is not None or not any(result.outcome == "running" for result in results):
            return trial
        reporter.refresh()
        stop_event.wait(POLL_SECONDS)
    return None


def search_status(study: Study, limit: int) -> str:
    """MLflow's status for the search's run when a worker leaves it."""
    results = study.results()
    if any(result.outcome == "running" for result in results):
        return "RUNNING"
    return "FINISHED" if sum(result.ended for result in results) >= limit else "KILLED"


@contextmanager
def worker_processes(root: Path, count: int, limit: int, minutes: float) -> Iterator[None]:
    """Run `count` - 1 more worker processes while the block runs; all share the cores and end with the block."""
    threads = max(1, torch.get_num_threads() // count)
    command = [sys.executable, "-m", "cifar_resnet", "search", "run", f"--trials={limit}", f"--minutes={minutes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(2, count + 1):
            (root / SCRATCH).mkdir(parents=True, exist_ok=True)
            with (root / SCRATCH / f"search-worker-{number}.log").open("w") as log:
                processes.append(subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log))
        torch.set_num_threads(threads)
        yield
        for number, process in enumerate(processes, start=2):
            code = process.wait()
            if code < 0:
                print(
                    f"search: worker {number} was killed by signal {-code}; the others do its trials", file=sys.stderr
                )
            elif code:
                print(f"search: worker {number} failed, see {SCRATCH}/search-worker-{number}.log", file=sys.stderr)
    except BaseException:
        for process in processes:
            process.send_signal(signal.SIGINT)
        for process in processes:
            process.wait()
        raise
