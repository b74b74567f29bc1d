import time

import numpy as np

from cifar_resnet.evaluation import latency


def test_rates_are_those_of_an_answer_of_known_length() -> None:
    def answer(pixels: np.ndarray, *, batch_size: int) -> None:  # type: ignore[type-arg]
        assert batch_size == len(pixels)
        time.sleep(0.002 if len(pixels) == 1 else 0.02)

    found = latency.measure_latency(answer, np.zeros((300, 3, 32, 32), np.uint8))
    assert 2 <= found["latency_milliseconds"] < 20  # a sleep never ends early; how late depends on the machine
    assert 256 / 0.2 < found["images_per_second"] <= 256 / 0.02
    assert found["latency_milliseconds_spread"] >= 0
