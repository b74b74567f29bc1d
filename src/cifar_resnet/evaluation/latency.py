"""How fast a model answers: medians, because a shared machine has outliers, with the spread of the middle half."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cifar_resnet.data.dataset import Pixels

SINGLE_RUNS, BATCH_RUNS, BATCH_SIZE = 50, 9, 256


def measure_latency(answer: Callable[..., Any], pixels: Pixels) -> dict[str, float]:
    """Milliseconds for one image, and images a second in batches of 256, each with its interquartile range.

    Args:
        answer: called with uint8 (N, 3, 32, 32) and `batch_size`; has run once before, so that start-up is not counted.
    """
    single = [1000 * _seconds(answer, pixels[:1]) for _ in range(SINGLE_RUNS)]
    batch = pixels[:BATCH_SIZE]
    rates = [len(batch) / _seconds(answer, batch) for _ in range(BATCH_RUNS)]
    found: dict[str, float] = {}
    for name, values in (("latency_milliseconds", single), ("images_per_second", rates)):
        low, median, high = np.percentile(values, (25, 50, 75))
        found |= {name: round(float(median), 2), f"{name}_spread": round(float(high - low), 2)}
    return found


def _seconds(answer: Callable[..., Any], pixels: Pixels) -> float:
    start = time.perf_counter()
    answer(pixels, batch_size=len(pixels))
    return time.perf_counter() - start
