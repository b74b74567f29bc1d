"""Whether one model is better than another on the same images, or only luckier."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

CorrectMask = NDArray[np.bool_]


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images; shares are 0 to 1."""

    images: int
    only_first: int  # images that the first model alone classifies rightly
    only_second: int
    difference: float  # accuracy of the first minus that of the second
    difference_low: float  # ends of its 95 % interval
    difference_high: float
    p_value: float  # two-sided

    def __str__(self) -> str:
        low, high = 100 * self.difference_low, 100 * self.difference_high
        return (
            f"{100 * self.difference:+.2f} points (95 % interval {low:+.2f} to {high:+.2f}), "
            f"p = {self.p_value:.2g} on {self.images:,} images"
        )


def mcnemar_test(first: CorrectMask, second: CorrectMask) -> Comparison:
    """Compare which images two models classify rightly, bool (N,) each, N > 0.

    The p-value is that of McNemar's test (1947) in its exact form: of the images that one model alone has right, each
    model is as likely to own each. The interval is Wald's with half an image added to each of the four cells (Agresti
    and Min, 2005, "Simple improved confidence intervals for comparing matched proportions", section 3), which keeps
    its width where the models differ on few images or none.
    """
    count = len(first)
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    apart, size = gained + lost + 1, count + 2
    middle = (gained - lost) / size
    half = norm.ppf(0.975) * np.sqrt(apart - (gained - lost) ** 2 / size) / size
    return Comparison(
        images=count,
        only_first=gained,
        only_second=lost,
        difference=(gained - lost) / count,
        difference_low=max(-1.0, float(middle - half)),
        difference_high=min(1.0, float(middle + half)),
        p_value=float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
    )


def read_correct_mask(path: Path) -> CorrectMask:
    """Which test images a network classifies correctly, bool (N,), from the predictions.csv of evaluate."""
    with path.open(newline="", encoding="utf-8") as stream:
        return np.array([row["actual"] == row["predicted"] for row in csv.DictReader(stream)])
