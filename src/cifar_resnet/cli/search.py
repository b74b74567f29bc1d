"""`cifar-resnet search`: run a search, alone or with several workers; show, queue or apply its best trials."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_resnet.cli.arguments import count, path, positive_number
from cifar_resnet.errors import UserError

if TYPE_CHECKING:
    from cifar_resnet.params.file import Params
    from cifar_resnet.search.trial import TrialResult

ACTIONS = """actions:
  run    train trials up to --trials; the same command continues an interrupted search or joins a running one
  best   show the best trials, each with the command that trains it in full
  queue  add the best trials to DVC's queue; `dvc queue start` trains them in full
  apply  write the best trial, or --trial N, into params.yaml and show the difference"""


def add_search_arguments(parser: ArgumentParser) -> None:
    parser.epilog = ACTIONS
    parser.add_argument("action", nargs="?", choices=("run", "best", "queue", "apply"), default="run", help="see below")
    parser.add_argument("--trials", type=count, metavar="N", help="number of trials in total (default: search.trials)")
    parser.add_argument("--minutes", type=positive_number, metavar="N",
                        help="minutes after which no trial starts (default: search.minutes)")  # fmt: skip
    parser.add_argument("--workers", type=count, default=1, metavar="N",
                        help="number of processes, which share the cores (default: %(default)s)")  # fmt: skip
    parser.add_argument("--top", type=count, default=5, metavar="K", help="trials to show or queue (default: 5)")
    parser.add_argument("--trial", type=int, metavar="N", help="trial to apply (default: the best)")
    parser.add_argument("--output", type=path, metavar="FOLDER", help="write trials.csv and the figures to this folder")


def search_command(root: Path, arguments: Namespace) -> int:
    from cifar_resnet.params.file import load_params
    from cifar_resnet.search.report import log_search_results, write_search_results
    from cifar_resnet.search.results import rank_trials
    from cifar_resnet.search.study import Study
    from cifar_resnet.search.worker import run_search, worker_processes

    params = load_params(root / "params.yaml")
    if arguments.action == "run":
        limit, minutes = arguments.trials or params.search.trials, arguments.minutes or params.search.minutes
        with worker_processes(root, arguments.workers, limit, minutes):
            run_search(root, params, limit=limit, minutes=minutes)
    study = Study(root, params)
    with study.require_storage():
        results = study.results()
        if arguments.action == "run":
            log_search_results(root, study, results)
        if arguments.output:
            write_search_results(arguments.output, study, results)
    ranked = rank_trials(results)
    if not ranked:
        ended = sum(result.ended for result in results)
        raise UserError(f"none of the {ended} trials of {params.search.study} is finished; `make search` continues it")
    use_trials(root, params, arguments, ranked)
    return 0


def use_trials(root: Path, params: Params, arguments: Namespace, ranked: list[TrialResult]) -> None:
    """Show, queue or apply finished trials, the best first."""
    from cifar_resnet.search.results import apply_trial, queue_experiments, results_table

    if arguments.action == "queue":
        number = queue_experiments(root, params.search.study, ranked[: arguments.top])
        queued = "1 training is" if number == 1 else f"{number} trainings are"
        print(f"search: {queued} in DVC's queue; `dvc queue start` runs what is queued")
    elif arguments.action == "apply":
        number = ranked[0].number if arguments.trial is None else arguments.trial
        result = next((result for result in ranked if result.number == number), None)
        if result is None:
            raise UserError(
                f"--trial {number}: not a finished trial of {params.search.study}; see `cifar-resnet search best`"
            )
        print(apply_trial(root, params, result) or "params.yaml already has these values", end="")
    else:
        print(results_table(ranked, arguments.top))
