"""Progress of a search: the bar, and a line for every trial that ends."""

import math
import time

import numpy as np

from cifar_resnet.progress import ProgressBar
from cifar_resnet.search.results import rank_trials
from cifar_resnet.search.study import Study
from cifar_resnet.search.trial import SearchTrial, TrialResult


class ProgressReporter:
    """Prints every trial that ends, of all workers, with the progress of the search."""

    def __init__(self, study: Study, bar: ProgressBar, limit: int, deadline: float) -> None:
        self.study = study
        self.bar = bar
        self.limit = limit
        self.deadline = deadline
        self.reported = {result.number for result in study.results() if result.ended}
        self.done = len(self.reported)

    def refresh(self) -> None:
        results = self.study.results()
        self.done = sum(result.ended for result in results)
        for result in results:
            if result.ended and result.number not in self.reported:
                self.reported.add(result.number)
                self.bar.print(f"{trial_line(result)}  |  {self.summary(results)}")

    def show_training(self, trial: SearchTrial, fraction: float, note: str) -> None:
        self.bar.update(self.done + fraction, f"trial {trial.number}  {note}")

    def summary(self, results: list[TrialResult]) -> str:
        ended = [result for result in results if result.ended]
        pruned = sum(result.outcome == "pruned" for result in ended)
        ranked = rank_trials(results)
        best = f"best {ranked[0].accuracy:.2%} (trial {ranked[0].number})" if ranked else "none finished"
        return f"{len(ended)}/{self.limit}, {pruned} pruned, {best}, ETA {self.minutes_left(results):.0f} min"

    def minutes_left(self, results: list[TrialResult]) -> float:
        """Minutes until the last trial ends, estimated from the mean duration of a trial so far."""
        seconds = [result.seconds for result in results if result.seconds is not None]
        workers = max(1, sum(result.outcome == "running" for result in results))
        rounds = math.ceil(max(0, self.limit - sum(result.ended for result in results)) / workers)
        return min(rounds * float(np.mean(seconds or [0])), max(0.0, self.deadline - time.monotonic())) / 60


def trial_line(result: TrialResult) -> str:
    """A trial in one line of text."""
    accuracy = "" if result.accuracy is None else f"  {result.accuracy:.2%} after {result.epochs} epochs"
    size = f"{result.parameters or 0:,} parameters, {(result.multiply_adds or 0) / 1e6:.0f} M multiply-adds"
    seconds = f", {result.seconds:.0f} s" if result.seconds else ""
    return f"trial {result.number:>3}  {result.outcome:8}{accuracy}  {size}{seconds}  {result.reason}".rstrip()
