"""Whether two models differ significantly on the same images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from cifar_resnet.files import read_rows

CorrectMask = NDArray[np.bool_]
SMALLEST_P_VALUE = 1e-300  # smaller ones are not printed; floats become zero at about 1e-324


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images; differences are between -1 and 1."""

    images: int
    only_first: int  # images that only the first model classifies correctly
    only_second: int
    difference: float  # accuracy of the first minus accuracy of the second
    difference_low: float  # ends of its 95 % interval
    difference_high: float
    p_value: float  # two-sided

    def __str__(self) -> str:
        low, high = 100 * self.difference_low, 100 * self.difference_high
        p_value = format_p_value(self.p_value)
        return (
            f"{100 * self.difference:+.2f} points (95 % interval {low:+.2f} to {high:+.2f}), "
            f"p {p_value if p_value.startswith('<') else f'= {p_value}'} on {self.images:,} images"
        )


def format_p_value(p_value: float) -> str:
    """Two digits, for example "0.021", or "< 1e-300"."""
    return f"{p_value:.2g}" if p_value >= SMALLEST_P_VALUE else f"< {SMALLEST_P_VALUE:g}"


def mcnemar_test(first: CorrectMask, second: CorrectMask) -> Comparison:
    """Compare the images that two models classify correctly, bool (N,) each, N > 0.

    The p-value is from McNemar's exact test (1947). Its null hypothesis: an image that only one model classifies
    correctly is equally likely to be the first model's or the second's. The interval is Wald's with half an image added
    to each of the four cells (Agresti and Min, 2005, "Simple improved confidence intervals for comparing matched
    proportions", section 3). It keeps a width even if the models differ on few images or none.
    """
    count = len(first)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant, total = only_first + only_second + 1, count + 2  # with half an image more in each cell
    center = (only_first - only_second) / total
    half_width = norm.ppf(0.975) * np.sqrt(discordant - (only_first - only_second) ** 2 / total) / total
    differ = only_first + only_second
    return Comparison(
        images=count,
        only_first=only_first,
        only_second=only_second,
        difference=(only_first - only_second) / count,
        difference_low=max(-1.0, float(center - half_width)),
        difference_high=min(1.0, float(center + half_width)),
        p_value=float(binomtest(only_first, differ).pvalue) if differ else 1.0,
    )


def read_correct_mask(path: Path) -> CorrectMask:
    """Which test images a network classifies correctly, bool (N,), from the predictions.csv of evaluate.

    Raises:
        UserError: if the file is missing or damaged.
    """
    return np.array([row["actual"] == row["predicted"] for row in read_rows(path, "actual", "predicted")], dtype=bool)
