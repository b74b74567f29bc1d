"""What a training step costs on this machine, and where it goes: prints a table and writes benchmarks/benchmark.json.

All figures come from one run, the matmuls and steps in alternating rounds, because a shared machine wanders; the
ancestor, the split by kind and the step without kept memory are measured once after them. The ceiling is the matmul
rate in the precision that trains; PF-equivalents are seconds times that rate / 1000 (TFLOP/s), so that costs on
different machines compare.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from cifar_resnet import device
from cifar_resnet.data import dataset
from cifar_resnet.files import write_json
from cifar_resnet.models import resnet
from cifar_resnet.params.file import load_params, with_overrides
from cifar_resnet.training.distributed import World
from cifar_resnet.training.loader import BatchLoader
from cifar_resnet.training.loop import TrainState, train_step

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/benchmark.json"
ROUNDS, STEPS = 3, 3
SIDE, EMULATED = 4096, 512  # of the matrices; of bfloat16 ones on a CPU that lacks it and takes 700 times as long
ANCESTOR_BATCH = 128
KINDS = {
    "convolution forward": ("aten::mkldnn_convolution",),
    "convolution backward": ("aten::convolution_backward", "aten::mkldnn_convolution_backward"),
    "normalisation": ("aten::native_batch_norm", "aten::native_batch_norm_backward"),
    "activation": ("aten::silu", "aten::silu_backward"),
    "head_pool": ("aten::max_pool2d_with_indices", "aten::max_pool2d_with_indices_backward"),
    "casts and copies": ("aten::copy_",),
}


def main() -> None:
    device.disable_malloc_trim()
    values = load_params(ROOT / "params.yaml")
    precision, _ = device.select_dtype(values.train.precision, device.select_device())
    fastest, _ = device.select_dtype("auto", device.select_device())
    sides = {"float32": SIDE, "bfloat16": SIDE if fastest == torch.bfloat16 else EMULATED}
    train = dataset.read_split(ROOT / "data/prepared", "train")
    statistic = json.loads((ROOT / "data/prepared/statistics.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    model = resnet.build_model(values.model, statistic["channel_mean"], statistic["channel_std"])
    state, batches = TrainState(model, values.train), BatchLoader(train, values.train, World())
    drawn = {batches.resolution(epoch): next(batches.epoch(epoch)) for epoch in (0, values.train.epochs - 1)}

    def step(resolution: int) -> Callable[[], Any]:
        return lambda: train_step(state, *drawn[resolution], values.train, precision, World())

    measured: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, work, repeat in (
            ("bfloat16 matmul, TFLOP/s", matmul(torch.bfloat16, sides["bfloat16"]), 4),
            ("float32 matmul, TFLOP/s", matmul(torch.float32, sides["float32"]), 2),
            *((f"step at {resolution} pixels, s", step(resolution), STEPS) for resolution in drawn),
            ("augmentation of a step, s", lambda: next(batches.epoch(values.train.epochs - 1)), STEPS),
            ("optimizers and average of a step, s", lambda: update(state), STEPS),
        ):
            measured.setdefault(name, []).append(seconds(work, repeat))
    found: dict[str, float] = {}
    for name, times in measured.items():
        middle = statistics.median(times)
        found[name] = 2 * sides[name.split()[0]] ** 3 / middle / 1e12 if "TFLOP/s" in name else middle
    ceiling = found[f"{device.dtype_name(precision)} matmul, TFLOP/s"]
    for resolution, (pixels, _) in drawn.items():
        work = 6 * sum(macs for macs, _ in convolutions(model, pixels[:1])) * len(pixels) / 1e12
        rate = work / found[f"step at {resolution} pixels, s"]
        found[f"arithmetic rate at {resolution} pixels, TFLOP/s"] = rate
        found[f"share of the ceiling at {resolution} pixels"] = rate / ceiling
    kinds = by_kind(step(32), model, drawn[32][0], precision)
    total = sum(
        len(batches) * found[f"step at {batches.resolution(epoch)} pixels, s"] for epoch in range(values.train.epochs)
    )
    found["training of the default recipe by these steps, s"] = total
    found["training of the default recipe, PF-equivalents"] = total * ceiling / 1000
    found["ancestor's epoch in float32, s"] = ancestor_epoch(len(train), drawn[32])
    found["step at 32 pixels when memory is given back, s"] = without_kept_memory()
    found["peak memory, GB"] = device.peak_memory_gb()
    facts = device.environment_info(precision)
    write_json(RESULT, {"machine": facts, "figures": found, "step at 32 pixels by kind, s": kinds})
    show(facts, found, kinds)


def seconds(work: Callable[[], Any], repeat: int) -> float:
    """Median seconds of `work`, after one call that is not counted."""
    work()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def matmul(dtype: torch.dtype, side: int) -> Callable[[], Tensor]:
    a, b = (torch.randn(side, side, dtype=dtype) for _ in range(2))
    return lambda: a @ b


def update(state: TrainState) -> None:
    """Optimizers and average, on the gradients that the last step left."""
    for parameter in state.model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for optimizer in state.optimizers:
        optimizer.step()
    state.ema.update_parameters(state.model)


def convolutions(model: nn.Module, pixels: Tensor) -> list[tuple[int, tuple[Tensor, nn.Conv2d]]]:
    """(multiply-adds for the batch, (input, layer)) of every convolution."""
    found: list[tuple[int, tuple[Tensor, nn.Conv2d]]] = []

    def record(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        found.append((layer.weight[0].numel() * output.numel(), (inputs[0].detach(), layer)))

    hooks = [m.register_forward_hook(record) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model(pixels)
    for hook in hooks:
        hook.remove()
    return found


def by_kind(step: Callable[[], Any], model: nn.Module, pixels: Tensor, precision: torch.dtype) -> dict[str, float]:
    """Seconds of a step by kind of work; the convolutions' backward pass is split as its two halves alone would be."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    spent = {event.key: event.self_cpu_time_total / 1e6 for event in profiled.key_averages()}
    kinds = {kind: sum(spent.pop(name, 0.0) for name in names) for kind, names in KINDS.items()}
    kinds["all else"] = sum(spent.values())
    inputs_share = input_gradient_share(model, pixels, precision)
    backward = kinds.pop("convolution backward")
    kinds["convolution, input gradient"] = inputs_share * backward
    kinds["convolution, weight gradient"] = (1 - inputs_share) * backward
    return dict(sorted(kinds.items(), key=lambda item: -item[1]))


def input_gradient_share(model: nn.Module, pixels: Tensor, precision: torch.dtype) -> float:
    """Share of the input gradients in the time of all convolutions' backward passes, each half timed alone."""
    spent = [0.0, 0.0]
    for _, (x, layer) in convolutions(model, pixels):
        spent[0] += seconds(gradient_of(layer, x.to(precision), half=0), 1)
        if layer.weight.requires_grad:
            spent[1] += seconds(gradient_of(layer, x.to(precision), half=1), 1)
    return spent[0] / sum(spent)


def gradient_of(layer: nn.Conv2d, x: Tensor, *, half: int) -> Callable[[], Any]:
    """The backward pass of a convolution with respect to its input (half 0) or its weight (half 1)."""
    filters = layer.weight.detach().to(x.dtype)
    gradient = torch.ones_like(torch.conv2d(x, filters, None, layer.stride, layer.padding))
    geometry = (layer.stride, layer.padding, (1, 1), False, (0, 0), 1)
    mask = [half == 0, half == 1, False]
    return lambda: torch.ops.aten.convolution_backward(gradient, x, filters, None, *geometry, mask)


def ancestor_epoch(num_images: int, batch: tuple[Tensor, Tensor]) -> float:
    """Seconds of an epoch of the ancestor's network in float32, from its steps at batch 128."""
    preset = yaml.safe_load((ROOT / "presets/ancestor.yaml").read_text(encoding="utf-8"))
    values = with_overrides(load_params(ROOT / "params.yaml"), preset | {"train.optimizer": "sgd"})
    state = TrainState(resnet.build_model(values.model, [0.5] * 3, [0.25] * 3), values.train)
    pixels, labels = (each[:ANCESTOR_BATCH] for each in batch)
    step = seconds(lambda: train_step(state, pixels, labels, values.train, torch.float32, World()), 2)
    return step * num_images / ANCESTOR_BATCH


def without_kept_memory() -> float:
    """Seconds of a step in a process that gives freed memory back, as a program does by default."""
    command = [sys.executable, __file__, "--step"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def one_step() -> None:
    values = load_params(ROOT / "params.yaml")
    precision, _ = device.select_dtype(values.train.precision, device.select_device())
    state = TrainState(resnet.build_model(values.model, [0.5] * 3, [0.25] * 3), values.train)
    pixels = torch.randint(0, 256, (values.train.batch_size, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 10, (len(pixels),))
    step = lambda: train_step(state, pixels, labels, values.train, precision, World())  # noqa: E731
    print(seconds(step, STEPS))


def show(facts: dict[str, Any], found: dict[str, float], kinds: dict[str, float]) -> None:
    console = Console()
    table = Table("figure", "value", title=", ".join(f"{key} {value}" for key, value in facts.items()))
    for name, value in found.items():
        table.add_row(name, f"{value:.3f}")
    for name, value in kinds.items():
        table.add_row(f"step at 32 pixels: {name}, s", f"{value:.3f}")
    console.print(table)
    console.print(f"-> {RESULT.relative_to(ROOT)}")


if __name__ == "__main__":
    one_step() if "--step" in sys.argv else main()
