"""Measure a training step on this machine and the time of its parts; print a table, write benchmarks/benchmark.json.

Matrix products and steps are timed in alternating rounds, because the speed of a shared machine varies. Three values
are measured once, after these rounds: the ancestor's epoch, the seconds by kind of operation, and the step with
malloc trimming. The ceiling is the rate of the matrix product in the training's precision. PF-equivalents are seconds
times that rate in TFLOP/s, divided by 1000; they make costs on different machines comparable.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from cifar_resnet import device
from cifar_resnet.data.dataset import read_split
from cifar_resnet.files import write_json
from cifar_resnet.models import resnet
from cifar_resnet.params.file import Params, load_params, parse_yaml, with_overrides
from cifar_resnet.training.distributed import World
from cifar_resnet.training.loader import BatchLoader
from cifar_resnet.training.loop import TrainState, train_step

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/benchmark.json"
ROUNDS, STEPS = 3, 3
SIDE = 4096  # of the square matrices
EMULATED_SIDE = 512  # of bfloat16 matrices on a CPU without bfloat16 instructions, where they take 700 times as long
ANCESTOR_BATCH = 128
OPERATIONS = {
    "convolution forward": ("aten::mkldnn_convolution",),
    "convolution backward": ("aten::convolution_backward", "aten::mkldnn_convolution_backward"),
    "normalisation": ("aten::native_batch_norm", "aten::native_batch_norm_backward"),
    "activation": ("aten::silu", "aten::silu_backward"),
    "pooling": ("aten::max_pool2d_with_indices", "aten::max_pool2d_with_indices_backward"),
    "casts and copies": ("aten::copy_",),
}
Batch = tuple[Tensor, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", action="store_true", help="print only the seconds of a step, with malloc trimming")
    if parser.parse_args().step:
        print(seconds_with_malloc_trim())
    else:
        run_benchmark()


def run_benchmark() -> None:
    device.disable_malloc_trim()
    params = load_params(ROOT / "params.yaml")
    precision, _ = device.select_dtype(params.train.precision, device.select_device())
    train = read_split(ROOT / "data/prepared", "train")
    statistics = json.loads((ROOT / "data/prepared/statistics.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    model = resnet.build_model(
        params.model, statistics["channel_mean"], statistics["channel_std"], num_classes=len(statistics["classes"])
    )
    state, loader = TrainState(model, params.train), BatchLoader(train, params.train, World())
    batches = {loader.resolution(epoch): next(loader.epoch(epoch)) for epoch in (0, params.train.epochs - 1)}

    figures = time_rounds(state, loader, batches, params, precision)
    ceiling = figures[f"{device.dtype_name(precision)} matmul, TFLOP/s"]
    figures |= arithmetic_rates(model, batches, figures, ceiling)
    kinds = seconds_by_kind(partial(step, state, batches[32], params, precision), model, batches[32][0], precision)
    total = sum(
        len(loader) * figures[f"step at {loader.resolution(epoch)} pixels, s"] for epoch in range(params.train.epochs)
    )
    figures["training of the default recipe by these steps, s"] = total
    figures["training of the default recipe, PF-equivalents"] = total * ceiling / 1000
    figures["ancestor's epoch in float32, s"] = ancestor_epoch_seconds(
        len(train), batches[32], len(statistics["classes"])
    )
    command = [sys.executable, __file__, "--step"]
    trimmed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    figures["step at 32 pixels when memory is given back, s"] = float(trimmed)
    figures["peak memory, GB"] = device.peak_memory_gb()
    machine = device.environment_info(precision)
    write_json(RESULT, {"machine": machine, "figures": figures, "step at 32 pixels by kind, s": kinds})
    print_results(machine, figures, kinds)


def time_rounds(
    state: TrainState, loader: BatchLoader, batches: dict[int, Batch], params: Params, precision: torch.dtype
) -> dict[str, float]:
    """Rates of matrix products in TFLOP/s, and seconds of a step and of its parts: medians over the rounds."""
    fastest, _ = device.select_dtype("auto", device.select_device())
    sides = {"float32": SIDE, "bfloat16": SIDE if fastest == torch.bfloat16 else EMULATED_SIDE}
    steps: dict[str, Callable[[], Any]] = {
        f"step at {resolution} pixels, s": partial(step, state, batch, params, precision)
        for resolution, batch in batches.items()
    }
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, function, repeat in (
            ("bfloat16 matmul, TFLOP/s", matmul(torch.bfloat16, sides["bfloat16"]), 4),
            ("float32 matmul, TFLOP/s", matmul(torch.float32, sides["float32"]), 2),
            *((name, function, STEPS) for name, function in steps.items()),
            ("augmentation of a step, s", lambda: next(loader.epoch(params.train.epochs - 1)), STEPS),
            ("optimizers and average of a step, s", lambda: update_weights(state), STEPS),
        ):
            times.setdefault(name, []).append(median_seconds(function, repeat))
    medians = {name: median(values) for name, values in times.items()}
    return {
        name: 2 * sides[name.split()[0]] ** 3 / seconds / 1e12 if "TFLOP/s" in name else seconds
        for name, seconds in medians.items()
    }


def arithmetic_rates(
    model: nn.Module, batches: dict[int, Batch], figures: dict[str, float], ceiling: float
) -> dict[str, float]:
    """Arithmetic rate of a step in TFLOP/s, from its convolutions' multiply-adds, and its share of the ceiling."""
    rates = {}
    for resolution, (pixels, _) in batches.items():
        teraflop = 6 * sum(macs for macs, _ in trace_convolutions(model, pixels[:1])) * len(pixels) / 1e12
        rate = teraflop / figures[f"step at {resolution} pixels, s"]
        rates[f"arithmetic rate at {resolution} pixels, TFLOP/s"] = rate
        rates[f"share of the ceiling at {resolution} pixels"] = rate / ceiling
    return rates


def step(state: TrainState, batch: Batch, params: Params, precision: torch.dtype) -> None:
    train_step(state, *batch, params.train, precision, World())


def median_seconds(function: Callable[[], Any], repeat: int) -> float:
    """Median duration of `repeat` calls, after one call to warm up."""
    function()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return median(times)


def matmul(dtype: torch.dtype, side: int) -> Callable[[], Tensor]:
    a, b = (torch.randn(side, side, dtype=dtype) for _ in range(2))
    return lambda: a @ b


def update_weights(state: TrainState) -> None:
    """Optimizers and weight averaging, with the gradients of the last step."""
    for parameter in state.model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for optimizer in state.optimizers:
        optimizer.step()
    state.ema.update_parameters(state.model)


def trace_convolutions(model: nn.Module, pixels: Tensor) -> list[tuple[int, tuple[Tensor, nn.Conv2d]]]:
    """(multiply-adds for the batch, (input, layer)) of every convolution."""
    convolutions: list[tuple[int, tuple[Tensor, nn.Conv2d]]] = []

    def record(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        convolutions.append((layer.weight[0].numel() * output.numel(), (inputs[0].detach(), layer)))

    hooks = [m.register_forward_hook(record) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model(pixels)
    for hook in hooks:
        hook.remove()
    return convolutions


def seconds_by_kind(
    function: Callable[[], Any], model: nn.Module, pixels: Tensor, precision: torch.dtype
) -> dict[str, float]:
    """Seconds of a step by kind of operation, in descending order.

    The profiler reports one time for the backward pass of a convolution. It is split in proportion to the times of its
    two halves, each measured alone.
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        function()
    times = {event.key: event.self_cpu_time_total / 1e6 for event in profiled.key_averages()}
    kinds = {kind: sum(times.pop(name, 0.0) for name in names) for kind, names in OPERATIONS.items()}
    kinds["all else"] = sum(times.values())
    input_share = input_gradient_share(model, pixels, precision)
    backward = kinds.pop("convolution backward")
    kinds["convolution, input gradient"] = input_share * backward
    kinds["convolution, weight gradient"] = (1 - input_share) * backward
    return dict(sorted(kinds.items(), key=lambda item: -item[1]))


def input_gradient_share(model: nn.Module, pixels: Tensor, precision: torch.dtype) -> float:
    """Share of the input gradients in the time of all convolutions' backward passes, each half timed alone."""
    input_seconds, weight_seconds = 0.0, 0.0
    for _, (x, layer) in trace_convolutions(model, pixels):
        input_seconds += median_seconds(convolution_backward(layer, x.to(precision), half=0), 1)
        if layer.weight.requires_grad:
            weight_seconds += median_seconds(convolution_backward(layer, x.to(precision), half=1), 1)
    return input_seconds / (input_seconds + weight_seconds)


def convolution_backward(layer: nn.Conv2d, x: Tensor, *, half: int) -> Callable[[], Any]:
    """The backward pass of a convolution with respect to its input (half 0) or its weight (half 1)."""
    filters = layer.weight.detach().to(x.dtype)
    gradient = torch.ones_like(torch.conv2d(x, filters, None, layer.stride, layer.padding))
    geometry = (layer.stride, layer.padding, (1, 1), False, (0, 0), 1)
    mask = [half == 0, half == 1, False]
    return lambda: torch.ops.aten.convolution_backward(gradient, x, filters, None, *geometry, mask)


def ancestor_epoch_seconds(num_images: int, batch: Batch, num_classes: int) -> float:
    """Seconds of an epoch of the ancestor's network in float32, from its steps at batch 128."""
    preset = parse_yaml((ROOT / "presets/ancestor.yaml").read_text(encoding="utf-8"))
    params = with_overrides(load_params(ROOT / "params.yaml"), preset | {"train.optimizer": "sgd"})
    model = resnet.build_model(params.model, [0.5] * 3, [0.25] * 3, num_classes=num_classes)
    state = TrainState(model, params.train)
    pixels, labels = (tensor[:ANCESTOR_BATCH] for tensor in batch)
    seconds = median_seconds(lambda: step(state, (pixels, labels), params, torch.float32), 2)
    return seconds * num_images / ANCESTOR_BATCH


def seconds_with_malloc_trim() -> float:
    """Seconds of a step in a process that returns freed memory to the system, which is glibc's default."""
    params = load_params(ROOT / "params.yaml")
    precision, _ = device.select_dtype(params.train.precision, device.select_device())
    state = TrainState(resnet.build_model(params.model, [0.5] * 3, [0.25] * 3, num_classes=10), params.train)
    pixels = torch.randint(0, 256, (params.train.batch_size, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 10, (len(pixels),))
    return median_seconds(lambda: step(state, (pixels, labels), params, precision), STEPS)


def print_results(machine: dict[str, Any], figures: dict[str, float], kinds: dict[str, float]) -> None:
    console = Console()
    table = Table("figure", "value", title=", ".join(f"{key} {value}" for key, value in machine.items()))
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}")
    for name, value in kinds.items():
        table.add_row(f"step at 32 pixels: {name}, s", f"{value:.3f}")
    console.print(table)
    console.print(f"-> {RESULT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
