"""Draw the figures of docs/network.md and print its table: `python docs/network.py` -> docs/network/*.svg."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor, nn

from cifar_resnet.data.cifar10 import CLASSES
from cifar_resnet.evaluation.plots import BLUE, RED
from cifar_resnet.models.resnet import ResNet, build_model, num_parameters
from cifar_resnet.params.file import load_params

FOLDER = Path(__file__).parent / "network"
PALE_BLUE, PALE_RED, GREY = "#dbe7f3", "#f6dfdc", "#e9e9e9"
GLYPH = ("        ", " ###### ", " #      ", " ####   ", " #      ", " #      ", " #      ", "        ")  # the letter F
HEIGHT = 52  # of plot_mirrored, in tenths of an inch
EDGE_FILTER = ((-1.0, 0.0, 1.0), (-1.0, 0.5, 1.0), (-1.0, 0.0, 0.5))  # bright on the right-hand side of dark


@dataclass(frozen=True)
class Part:
    """A part of the network; `output` is (channels, pixels per side)."""

    name: str
    output: tuple[int, int]
    parameters: int
    multiply_adds: int


def measure_parts(model: ResNet) -> list[Part]:
    """Stem, residual layers (convolution before the pooling, block) and head, measured with one image."""
    named = [("stem", model.stem)]
    for number, layer in enumerate(model.layers, start=1):
        assert isinstance(layer, nn.Sequential)
        named += [(f"layer {number}: convolution, pooling", layer[:4]), (f"layer {number}: block", layer[4:])]
    parts, x = [], torch.zeros(1, 3, 32, 32)
    for name, module in named:
        output = module(x)
        parts.append(Part(name, (output.shape[1], output.shape[3]), num_parameters(module), count(module, x)))
        x = output
    pooled = model.head_pool(x, model.head_pool_kernel).flatten(1)
    return [*parts, Part("head", (model.head.out_features, 1), num_parameters(model.head), count(model.head, pooled))]


def count(module: nn.Module, x: Tensor) -> int:
    """Multiply-adds of the module's convolutions and linear layers for the input `x` of one image."""
    counts: list[int] = []

    def hook(layer: nn.Module, _: tuple[Tensor], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        counts.append(layer.weight[0].numel() * output[0].numel())

    hooks = [
        layer.register_forward_hook(hook) for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    module(x)
    for handle in hooks:
        handle.remove()
    return sum(counts)


def table(parts: list[Part]) -> str:
    """The table of docs/network.md."""
    lines = ["| part | output | parameters | multiply-adds |", "| --- | --- | --- | --- |"]
    for part in parts:
        channels, side = part.output
        lines.append(f"| {part.name} | {channels} x {side} x {side} | {part.parameters:,} | {part.multiply_adds:,} |")
    total = sum(part.parameters for part in parts), sum(part.multiply_adds for part in parts)
    return "\n".join([*lines, f"| all | | {total[0]:,} | {total[1]:,} |"])


def box(axes: Axes, centre: tuple[float, float], size: tuple[float, float], text: str, colour: str) -> None:
    corner = centre[0] - size[0] / 2, centre[1] - size[1] / 2
    shape = "round,pad=0,rounding_size=0.8"
    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle=shape, facecolor=colour, edgecolor="#555555", linewidth=1))
    axes.text(*centre, text, ha="center", va="center", fontsize=9.5, linespacing=1.35)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "color": "#555555", "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style)


def blank_axes(figure: Figure, width: float, height: float) -> Axes:
    axes: Axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    return axes


def plot_default(parts: list[Part]) -> Figure:
    """The network from image to classes; below it what a residual layer consists of."""
    figure = Figure(figsize=(9, 4.7))
    axes = blank_axes(figure, 90, 47)
    axes.text(2, 44, "The default network", fontsize=12, weight="bold", va="center")
    outputs = [part.output for part in parts if "block" in part.name]
    boxes = [("image", (3, 32), GREY), ("whitening\n2x2, fixed", parts[0].output, PALE_RED)]
    boxes += [(f"residual\nlayer {number}", output, PALE_BLUE) for number, output in enumerate(outputs, start=1)]
    boxes += [("max-pool\n3x3", (outputs[-1][0], 1), GREY), ("linear", (10, 1), PALE_BLUE)]
    for index, (text, (channels, side), colour) in enumerate(boxes):
        x = 7.5 + 12.5 * index
        box(axes, (x, 35), (10, 8), text, colour)
        shape = f"{channels} x {side}x{side}" if side > 1 else f"{channels} values"
        axes.text(x, 28.6, shape, ha="center", va="center", fontsize=9)
        if index:
            arrow(axes, (x - 7.5, 35), (x - 5, 35))
    plot_layer(axes)
    return figure


def plot_layer(axes: Axes) -> None:
    """The layers inside a residual layer, in the lower half of `plot_default`."""
    axes.text(2, 23.5, "A residual layer", fontsize=12, weight="bold", va="center")
    names = ["convolution\n3x3", "max-pool\n2x2", "batch\nnorm", "SiLU", "convolution\n3x3", "batch\nnorm", "SiLU"]
    names += ["convolution\n3x3", "batch\nnorm", "SiLU"]
    widths = [{"convolution": 9.4, "max-pool": 7.4, "batch": 5.8}.get(name.split("\n")[0], 5.4) for name in names]
    x, y, edges = 2.0, 14, []
    for index, (name, width) in enumerate(zip(names, widths, strict=True)):
        x += 3.6 if index == len(names) - 1 else 0
        box(axes, (x + width / 2, y), (width, 6.5), name, PALE_BLUE if "conv" in name else GREY)
        edges.append((x, x + width))
        x += width + 1.4
    for (_, end), (start, _) in pairwise(edges[:-1]):
        arrow(axes, (end, y), (start, y))
    plus = (edges[-2][1] + edges[-1][0]) / 2
    axes.text(plus, y, "+", ha="center", va="center", fontsize=14, weight="bold")
    arrow(axes, (edges[-2][1], y), (plus - 0.9, y))
    arrow(axes, (plus + 0.9, y), (edges[-1][0], y))
    fork = (edges[3][1] + edges[4][0]) / 2
    axes.plot([fork, fork, plus, plus], [y, 6, 6, 6], color="#555555", linewidth=1.1)
    arrow(axes, (plus, 6), (plus, y - 1.6))
    axes.text((fork + plus) / 2, 4, "skip path: the input itself", ha="center", va="center", fontsize=9)
    axes.text((edges[0][0] + edges[3][1]) / 2, 4, "halves the resolution", ha="center", va="center", fontsize=9)
    axes.text((fork + plus) / 2, 19.2, "residual block", ha="center", va="center", fontsize=9)


def plot_mirrored() -> Figure:
    """An image and its mirror image through a pair of mirrored filters: the feature maps are mirrored and swapped."""
    figure = Figure(figsize=(9, 5.2))
    axes = blank_axes(figure, 90, HEIGHT)
    axes.text(2, 49.5, "A pair of mirrored filters", fontsize=12, weight="bold", va="center")
    image = torch.tensor([[float(pixel == "#") for pixel in row] for row in GLYPH])
    first = torch.tensor(EDGE_FILTER)
    pair = torch.stack([first, first.flip(-1)])
    for text, x in (("input", 9), ("filters", 31), ("feature maps", 53), ("head: map 1 + map 2 mirrored", 77)):
        axes.text(x, 45.5, text, ha="center", va="center", fontsize=9.5)
    for row, (name, picture) in enumerate((("image", image), ("mirror image", image.flip(-1)))):
        y = 34 - 23 * row
        show(figure, picture, (9, y), 12, "Greys")
        axes.text(9, y - 7.8, name, ha="center", va="center", fontsize=9.5)
        maps = nn.functional.conv2d(picture[None, None], pair[:, None], padding=1)[0]
        for index, offset in enumerate((5, -5)):
            show(figure, pair[index], (31, y + offset), 7, "RdBu_r")
            show(figure, maps[index], (53, y + offset), 8.6, "RdBu_r")
            axes.text(58, y + offset, f"map {index + 1}", va="center", fontsize=9, color=BLUE if index == row else RED)
            arrow(axes, (15.6, y + offset / 2), (27, y + offset))
            arrow(axes, (35, y + offset), (48.2, y + offset))
            arrow(axes, (63.5, y + offset), (70, y + offset / 3))
        show(figure, maps[0] + maps[1].flip(-1), (77, y), 12, "RdBu_r")
    return figure


def show(figure: Figure, pixels: Tensor, centre: tuple[float, float], size: float, colours: str) -> None:
    """Draw a matrix at a position of `plot_mirrored`, in its units."""
    area = ((centre[0] - size / 2) / 90, (centre[1] - size / 2) / HEIGHT, size / 90, size / HEIGHT)
    axes = figure.add_axes(area)
    limit = float(pixels.abs().max())
    axes.imshow(pixels.numpy(), cmap=colours, vmin=0 if colours == "Greys" else -limit, vmax=limit)
    axes.set(xticks=[], yticks=[])


def main() -> None:
    params = load_params(Path(__file__).parents[1] / "params.yaml")
    with torch.no_grad():
        parts = measure_parts(build_model(params.model, [0.5] * 3, [0.25] * 3, num_classes=len(CLASSES)).eval())
    FOLDER.mkdir(exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "network"}):
        for name, figure in (("default", plot_default(parts)), ("mirrored", plot_mirrored())):
            figure.savefig(FOLDER / f"{name}.svg", facecolor="white", metadata={"Date": None})
    print(table(parts))


if __name__ == "__main__":
    main()
