"""Results of a search as files: trials.csv and figures, in a folder and in the search's MLflow run."""

import tempfile
from pathlib import Path

from cifar_resnet.files import atomic_write
from cifar_resnet.search.plots import plot_search_results
from cifar_resnet.search.results import rank_trials, write_trials_csv
from cifar_resnet.search.study import Study
from cifar_resnet.search.trial import TrialResult
from cifar_resnet.tracking.client import connect
from cifar_resnet.tracking.run import Run


def log_search_results(root: Path, study: Study, results: list[TrialResult]) -> None:
    """Log the table and the figures to the search's MLflow run."""
    run = Run(connect(root), str(study.mlflow_run))
    with tempfile.TemporaryDirectory() as folder:
        write_search_results(Path(folder), study, results)
        for path in sorted(Path(folder).iterdir()):
            run.log_artifact(path, "search")
    if ranked := rank_trials(results):
        ended = sum(result.ended for result in results)
        run.log_metrics({"best_accuracy": float(ranked[0].accuracy or 0), "trials": ended})
    run.end()


def write_search_results(folder: Path, study: Study, results: list[TrialResult]) -> None:
    write_trials_csv(folder / "trials.csv", results)
    for name, figure in plot_search_results(study, results).items():
        with atomic_write(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=110, format="png")
