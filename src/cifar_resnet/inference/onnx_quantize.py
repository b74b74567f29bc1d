"""Quantize an exported network to eight bits, with ranges from training images (static quantization).

Weights: symmetric, one scale per output channel. Seven bits, because CPUs with AVX2 only add pairs of products in 16
bits, which overflow with eight. Activations: uint8, one scale per tensor. The first and the last layer stay in float32.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from cifar_resnet.data.dataset import Pixels
from cifar_resnet.inference.onnx_file import INPUT

CALIBRATION_BATCH = 50
QUANTIZED = ("Conv", "Sigmoid", "Mul", "Add", "MaxPool", "Relu")


class Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, pixels: Pixels) -> None:
        batches = np.split(pixels, range(CALIBRATION_BATCH, len(pixels), CALIBRATION_BATCH))
        self.batches: Iterator[Pixels] = iter(batches)

    def get_next(self) -> dict[str, Pixels] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch}


def quantize(
    model: onnx.ModelProto, pixels: Pixels, method: CalibrationMethod = CalibrationMethod.MinMax, **options: object
) -> onnx.ModelProto:
    """The model with quantized layers between the stem and the head.

    Args:
        pixels: uint8 (N, 3, 32, 32), training images.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        quantize_static(
            source, target, Images(pixels), quant_format=QuantFormat.QDQ, op_types_to_quantize=list(QUANTIZED),
            nodes_to_exclude=list(float_nodes(model.graph.node)), per_channel=True, reduce_range=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=method,
        )  # fmt: skip
        return onnx.load(target)


def float_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Names of the nodes that are not quantized: everything before the first layer and the pooling of the head."""
    return (node.name for node in nodes if not node.name.startswith("layers."))
