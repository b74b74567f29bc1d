"""Results of a search as files: trials.csv and figures, in a folder and in the search's MLflow run."""

import tempfile
from pathlib import Path

from optuna.trial import FrozenTrial

from cifar_resnet.errors import UserError
from cifar_resnet.evaluation.plots import write_figure
from cifar_resnet.search.plots import plot_search_results
from cifar_resnet.search.results import rank_trials, write_trials_csv
from cifar_resnet.search.space import trial_params
from cifar_resnet.search.study import Study
from cifar_resnet.search.trial import RUN_STATUS, TrialResult
from cifar_resnet.tracking.client import connect, require_mlflow
from cifar_resnet.tracking.run import Run
from cifar_resnet.tracking.search_runs import COMPLETED_BY, OUTCOME_TAG, create_trial_run, set_run_status, trial_runs


def log_search_results(root: Path, study: Study, results: list[TrialResult]) -> None:
    """Log the table and the figures to the search's MLflow run, and the trials that MLflow is missing.

    Prints a message if MLflow cannot be used. Does nothing if tracking is disabled.
    """
    if not study.params.tracking.enabled:
        return
    try:
        client = connect(root)
        with require_mlflow(client), study.lock():
            run = Run(client, str(study.mlflow_run), COMPLETED_BY)
            log_missing_trials(run, root, study, results)
    except UserError as error:
        print(f"search: {error}; then `{COMPLETED_BY}` logs the results")
        return
    with tempfile.TemporaryDirectory() as folder:
        write_search_results(Path(folder), study, results)
        for path in sorted(Path(folder).iterdir()):
            run.log_artifact(path, "search")
        if ranked := rank_trials(results):
            ended = sum(result.ended for result in results)
            run.log_metrics({"best_accuracy": float(ranked[0].accuracy or 0), "trials": ended})
        run.end()


def log_missing_trials(search_run: Run, root: Path, study: Study, results: list[TrialResult]) -> None:
    """Create the missing runs of ended trials and complete the incomplete ones."""
    runs, trials = trial_runs(search_run.client, search_run.id), study.optuna_study.get_trials(deepcopy=False)
    for result, trial in zip(results, trials, strict=False):
        stored = runs.get(result.number)
        if result.ended and (stored is None or OUTCOME_TAG not in stored.data.tags):
            started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
            if stored is None:
                run = create_trial_run(root, result.number, search_run.id, int(1000 * started))
            else:
                run = Run(search_run.client, stored.info.run_id, COMPLETED_BY)
            log_trial(run, study, result, trial, int(1000 * (started + (result.seconds or 0))))
        elif result.outcome == "killed" and stored is not None:
            set_run_status(root, stored.info.run_id, RUN_STATUS["killed"], only_from={"RUNNING"})


def log_trial(run: Run, study: Study, result: TrialResult, trial: FrozenTrial, end_time: int) -> None:
    """Log what the study stores of an ended trial; epochs that the run already has stay unchanged.

    Args:
        end_time: in milliseconds since 1970.
    """
    try:
        params = trial_params(study.params, result.overrides)
        run.log_params({"model": params.model.model_dump(), "train": params.train.model_dump()})
    except (UserError, ValueError):  # a trial from a version whose keys had other names
        run.log_params({"overrides": result.overrides})
    run.log_metrics({"parameters": result.parameters or 0, "multiply_adds": result.multiply_adds or 0})
    last = {} if result.accuracy is None else {result.epochs: result.accuracy}
    for epoch, accuracy in sorted((trial.intermediate_values | last).items()):
        run.log_epoch({"validation_accuracy": accuracy}, epoch)
    run.set_tags({OUTCOME_TAG: result.outcome} | ({"reason": result.reason} if result.reason else {}))
    run.end(RUN_STATUS[result.outcome], end_time)


def write_search_results(folder: Path, study: Study, results: list[TrialResult]) -> None:
    write_trials_csv(folder / "trials.csv", results)
    for name, figure in plot_search_results(study, results).items():
        write_figure(folder / f"{name}.png", figure)
