"""Quantize an exported network to eight bits with ranges from training images, by ONNX Runtime's quantization.

Weights: symmetric, one scale per output channel, seven bits. CPUs without VNNI add two products in 16 bits, which
overflow with eight bits. Activations: uint8, one scale per tensor; PERCENTILE of the values are within its range. The
stem, the head and the pooling before the head stay in float32.
"""

import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from cifar_resnet.data.dataset import Pixels
from cifar_resnet.inference.onnx_file import INPUT

BATCH_SIZE = 50
PERCENTILE = 99.999
QUANTIZED_PREFIX = "layers."  # of the nodes' names
PREPARED = {"onnx.quant.pre_process": "onnxruntime.quant"}  # says that batch norms are folded


class CalibrationImages(CalibrationDataReader):  # type: ignore[misc]
    """Training images in batches of one size, which ONNX Runtime needs; a smaller last batch is skipped."""

    def __init__(self, pixels: Pixels) -> None:
        size = min(BATCH_SIZE, len(pixels))
        self.batches: Iterator[Pixels] = iter(np.split(pixels[: len(pixels) // size * size], len(pixels) // size))

    def get_next(self) -> dict[str, Pixels] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch}


def quantize(model: onnx.ModelProto, pixels: Pixels) -> onnx.ModelProto:
    """The model with its residual layers in eight bits.

    Args:
        pixels: uint8 (N, 3, 32, 32), training images.
    """
    onnx.helper.set_model_props(model, PREPARED)
    float_nodes = [node.name for node in model.graph.node if not node.name.startswith(QUANTIZED_PREFIX)]
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):  # it prints its progress
        target = Path(folder, "int8.onnx")
        quantize_static(
            model, target, CalibrationImages(pixels), quant_format=QuantFormat.QDQ, nodes_to_exclude=float_nodes,
            per_channel=True, reduce_range=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile, extra_options={"CalibPercentile": PERCENTILE},
        )  # fmt: skip
        return onnx.load(target)
