"""A trained network as an ONNX graph: raw images in, logits and probabilities out.

The graph is written layer by layer, so that batch norms are folded into the convolutions before them and mirrored
convolutions become plain ones. torch's exporter would keep both.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from cifar_resnet.inference.onnx_file import INPUT, LOGITS, PROBABILITIES
from cifar_resnet.models.batch_norm import PairedBatchNorm
from cifar_resnet.models.mirrored_convolution import MirroredConvolution, whole_filters
from cifar_resnet.models.resnet import Block, ResNet
from cifar_resnet.params.schema import ModelParams

OPSET = 17  # ONNX 1.12, June 2022
IR_VERSION = 8  # of the same release


class Graph:
    """Nodes and constants in the order of computation. Methods return the name of the node's output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Tensor | float) -> str:
        array = np.asarray(value.detach() if isinstance(value, Tensor) else value, np.float32)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def node(self, operator: str, inputs: Iterable[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name


@torch.no_grad()
def build_graph(model: ResNet, params: ModelParams, temperature: float) -> onnx.ModelProto:
    """Input `images`: uint8 (N, 3, 32, 32). Outputs `logits` and `probabilities`: float32 (N, C).

    Args:
        model: in float32, on the CPU.
        params: the model's hyperparameters.
        temperature: divisor of the logits before the softmax.
    """
    graph = Graph()
    x = graph.node("Cast", [INPUT], "pixels", to=TensorProto.FLOAT)
    x = graph.node("Sub", [x, graph.constant("mean", model.mean)], "centered")
    x = graph.node("Div", [x, graph.constant("std", model.std)], "normalized")
    x = add_sequence(graph, x, model.stem, "stem")
    for index, layer in enumerate(model.layers):
        x = add_sequence(graph, x, layer, f"layers.{index}")
    x = add_head(graph, x, model, params)
    x = graph.node("Div", [x, graph.constant("temperature", temperature)], "scaled_logits")
    graph.node("Softmax", [x], PROBABILITIES, axis=1)
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", model.head.out_features]) for name in
               (LOGITS, PROBABILITIES)]  # fmt: skip
    images = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", 3, 32, 32])
    content = helper.make_graph(graph.nodes, "cifar-resnet", [images], outputs, graph.constants)
    return helper.make_model(content, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
                             producer_name="cifar-resnet")  # fmt: skip


def add_sequence(graph: Graph, x: str, modules: nn.Module, name: str) -> str:
    """Add the modules of a sequence one after the other."""
    norms = [module for module in modules.children() if isinstance(module, NORMS)]
    for index, module in enumerate(modules.children()):
        output = f"{name}.{index}"
        if isinstance(module, nn.Conv2d):
            x = add_convolution(graph, x, module, norms.pop(0) if norms else None, output)
        elif isinstance(module, nn.MaxPool2d):
            ceil_mode = int(module.ceil_mode)
            x = add_pooling(graph, x, "MaxPool", output, module.kernel_size, module.stride, ceil_mode=ceil_mode)
        elif isinstance(module, Block):
            x = add_block(graph, x, module, output)
        elif not isinstance(module, NORMS):
            x = ADD_ACTIVATION[type(module)](graph, x, output)
    return x


def add_block(graph: Graph, x: str, block: Block, name: str) -> str:
    branch = add_sequence(graph, x, block.branch, f"{name}.branch")
    skip = x if isinstance(block.skip, nn.Identity) else add_sequence(graph, x, block.skip, f"{name}.skip")
    total = graph.node("Add", [branch, skip], f"{name}.sum")
    return ADD_ACTIVATION[type(block.activation)](graph, total, f"{name}.activation")


def add_convolution(graph: Graph, x: str, conv: nn.Conv2d, norm: nn.Module | None, name: str) -> str:
    """A convolution without bias, with the batch norm after it. Max-pooling may be between the two, because the scale
    of the batch norm is positive.
    """
    filters = plain_filters(conv)
    inputs = [x, f"{name}.weight"]
    if norm is not None:
        scale, bias = scale_and_bias(norm)
        assert bool((scale > 0).all())
        filters = filters * scale.view(-1, 1, 1, 1)
        inputs.append(graph.constant(f"{name}.bias", bias))
    graph.constant(f"{name}.weight", filters)
    assert isinstance(conv.padding, tuple)
    top, left = conv.padding
    return graph.node("Conv", inputs, name, kernel_shape=filters.shape[2:], strides=conv.stride,
                      pads=[top, left, top, left])  # fmt: skip


def plain_filters(conv: nn.Conv2d) -> Tensor:
    """The filters (O, I, K, K) of a convolution."""
    return whole_filters(conv.weight, conv.odd) if isinstance(conv, MirroredConvolution) else conv.weight


def scale_and_bias(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Of a batch norm in evaluation mode, for each channel."""
    if isinstance(norm, PairedBatchNorm):
        scale, bias = scale_and_bias(norm.paired)
        return scale.repeat(2), bias.repeat(2)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def add_pooling(graph: Graph, x: str, operator: str, name: str, kernel: Any, stride: Any, **attributes: int) -> str:
    return graph.node(operator, [x], name, kernel_shape=[kernel] * 2, strides=[stride] * 2, **attributes)


def add_silu(graph: Graph, x: str, name: str) -> str:
    return graph.node("Mul", [x, graph.node("Sigmoid", [x], f"{name}.sigmoid")], name)


def add_gelu(graph: Graph, x: str, name: str) -> str:
    """x / 2 * (1 + erf(x / sqrt(2))), in the form that ONNX Runtime recognizes."""
    root, one, half = (graph.constant(f"{name}.{key}", value) for key, value in
                       (("root", 2**0.5), ("one", 1), ("half", 0.5)))  # fmt: skip
    scaled = graph.node("Div", [x, root], f"{name}.scaled")
    share = graph.node("Add", [graph.node("Erf", [scaled], f"{name}.erf"), one], f"{name}.share")
    return graph.node("Mul", [graph.node("Mul", [x, share], f"{name}.double"), half], name)


def add_relu(graph: Graph, x: str, name: str) -> str:
    return graph.node("Relu", [x], name)


def add_head(graph: Graph, x: str, model: ResNet, params: ModelParams) -> str:
    """Pooling and the linear layer, which includes a mirrored network's sum over an image and its mirror image."""
    kernel, operator = params.head_pool_kernel, "MaxPool" if params.head_pool == "max" else "AveragePool"
    x = add_pooling(graph, x, operator, "head.pool", kernel, kernel)
    weight = model.head.weight
    if params.mirrored:
        filters = weight.unflatten(1, (params.channels[-1] // 2, params.resolution(32) // kernel, -1))
        weight = torch.cat([filters, filters.flip(-1)], 1).flatten(1)
    x = graph.node("Flatten", [x], "head.features")
    inputs = [x, graph.constant("head.weight", weight), graph.constant("head.bias", model.head.bias)]
    return graph.node("Gemm", inputs, LOGITS, transB=1)


NORMS = (nn.BatchNorm2d, PairedBatchNorm)
ADD_ACTIVATION: dict[type[nn.Module], Callable[[Graph, str, str], str]] = {
    nn.SiLU: add_silu,
    nn.GELU: add_gelu,
    nn.ReLU: add_relu,
}
