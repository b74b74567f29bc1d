"""Latency and throughput: medians and interquartile ranges, because times on a shared machine have outliers."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cifar_resnet.data.dataset import Pixels

SINGLE_RUNS, BATCH_RUNS, BATCH_SIZE = 50, 9, 256


def measure_latency(predict_fn: Callable[..., Any], pixels: Pixels) -> dict[str, float]:
    """Milliseconds for one image, and images per second in batches of 256, each with its interquartile range.

    Args:
        predict_fn: called with uint8 (N, 3, 32, 32) and `batch_size`; must have run once, or start-up time is included.
    """
    latencies = [1000 * _seconds(predict_fn, pixels[:1]) for _ in range(SINGLE_RUNS)]
    batch = pixels[:BATCH_SIZE]
    rates = [len(batch) / _seconds(predict_fn, batch) for _ in range(BATCH_RUNS)]
    metrics: dict[str, float] = {}
    for name, values in (("latency_milliseconds", latencies), ("images_per_second", rates)):
        low, median, high = np.percentile(values, (25, 50, 75))
        metrics |= {name: round(float(median), 2), f"{name}_spread": round(float(high - low), 2)}
    return metrics


def _seconds(predict_fn: Callable[..., Any], pixels: Pixels) -> float:
    start = time.perf_counter()
    predict_fn(pixels, batch_size=len(pixels))
    return time.perf_counter() - start
