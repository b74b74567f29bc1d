import time

import numpy as np

from cifar_resnet.evaluation import latency


def test_latency_and_throughput_match_a_function_of_known_duration() -> None:
    def predict_fn(pixels: np.ndarray, *, batch_size: int) -> None:  # type: ignore[type-arg]
        assert batch_size == len(pixels)
        time.sleep(0.002 if len(pixels) == 1 else 0.02)

    metrics = latency.measure_latency(predict_fn, np.zeros((300, 3, 32, 32), np.uint8))
    assert 2 <= metrics["latency_milliseconds"] < 20  # a sleep never ends early; how late depends on the machine
    assert 256 / 0.2 < metrics["images_per_second"] <= 256 / 0.02
    assert metrics["latency_milliseconds_spread"] >= 0
