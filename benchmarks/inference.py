"""Prediction with torch and with exported files, side by side; print a table, write benchmarks/inference.json.

All runtimes are timed in alternating rounds, because the speed of a shared machine varies, and each uses all cores of
this process. `default` is data/model. The presets have random weights: their speed is real, their accuracy is not
measured. Accuracy is that of the test images, without test-time augmentation. The ceiling is the rate of the matrix
product in the precision in which this machine trains.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark import SIDE, matmul, median_seconds
from packaging.requirements import Requirement
from PIL import Image
from rich.console import Console
from rich.table import Table

import cifar_resnet.environment_variables  # noqa: F401
from cifar_resnet import device
from cifar_resnet.data.cifar10 import CLASSES
from cifar_resnet.data.dataset import Pixels, read_split
from cifar_resnet.evaluation.significance import mcnemar_test
from cifar_resnet.files import write_json
from cifar_resnet.inference.logits import Logits
from cifar_resnet.inference.onnx_export import Precision, export_model
from cifar_resnet.inference.onnx_session import open_exported
from cifar_resnet.inference.predictor import predict_logits
from cifar_resnet.models import resnet, saved_model
from cifar_resnet.params.file import load_params, parse_yaml, with_overrides

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/inference.json"
NETWORKS = ("default", "small", "record")
ROUNDS, SINGLE_RUNS, BATCH_SIZE, STARTS = 5, 20, 256, 5
LogitsFn = Callable[[Pixels], Logits]


def main() -> None:
    device.disable_malloc_trim()
    precision, _ = device.select_dtype("auto", torch.device("cpu"))
    test = read_split(ROOT / "data/prepared", "test")
    load = os.getloadavg()[0]
    result: dict[str, Any] = {"machine": device.environment_info(precision) | {"load_before": round(load, 1)}}
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    result["commit"] = git.stdout.strip()
    result["versions"] = {name: distribution(name).version for name in ("torch", "onnxruntime", "onnx", "numpy")}
    ceiling = 2 * SIDE**3 / median_seconds(matmul(precision, SIDE), 3) / 1e12
    result["ceiling_tflops"] = round(ceiling, 3)
    with tempfile.TemporaryDirectory() as scratch:
        for name in NETWORKS:
            folder = model_folder(name, Path(scratch, name))
            runtimes, macs = load_runtimes(folder, precision)
            rows = time_runtimes(runtimes, test.pixels)
            for row in rows.values():
                row["share_of_ceiling"] = round(2 * macs * row["images_per_second"] / 1e12 / ceiling, 3)
            add_sizes(rows, folder)
            if name == "default":
                add_accuracies(rows, runtimes, test.pixels, test.labels)
                result["starts"] = process_starts(folder, Path(scratch))
            result[name] = rows
    result["environment_mb"] = {extra: round(installed_megabytes(extra)) for extra in ("onnx", "train")}
    write_json(RESULT, result)
    print_result(result)


def model_folder(name: str, scratch: Path) -> Path:
    """data/model, or a folder with random weights of a preset's network; and its exported files."""
    folder = ROOT / "data/model"
    if name != "default":
        folder, params = scratch, load_params(ROOT / "params.yaml")
        params = with_overrides(params, parse_yaml((ROOT / f"presets/{name}.yaml").read_text(encoding="utf-8")))
        statistics = {"channel_mean": [0.49] * 3, "channel_std": [0.25] * 3, "classes": list(CLASSES)}
        model = resnet.build_model(params.model, [0.49] * 3, [0.25] * 3, num_classes=len(CLASSES))
        config = saved_model.model_config(params.model, statistics, {}, mirror_views=model.mirror_views)
        saved_model.save_model(folder, model, config)
    scratch.mkdir(exist_ok=True)
    for file in (saved_model.WEIGHTS_FILE, saved_model.CONFIG_FILE):
        if folder != scratch:
            (scratch / file).symlink_to(folder / file)
    precisions: tuple[Precision, ...] = ("float32", "int8")
    for precision in precisions:
        export_model(scratch, scratch / f"{precision}.onnx", precision=precision, root=ROOT)
    return scratch


def load_runtimes(folder: Path, fastest: torch.dtype) -> tuple[dict[str, LogitsFn], int]:
    """The logits functions by name, and the network's multiply-adds; bfloat16 only where it is fast."""
    model, _ = saved_model.load_model(folder, torch.device("cpu"))
    dtypes = [torch.float32] if fastest == torch.float32 else [fastest, torch.float32]
    runtimes: dict[str, LogitsFn] = {
        f"torch {device.dtype_name(dtype)}": partial(torch_logits, model, dtype) for dtype in dtypes
    }
    for name in ("float32", "int8"):
        runtimes[f"ONNX Runtime {name}"] = open_exported(folder / f"{name}.onnx")[0].logits_fn
    return runtimes, resnet.multiply_adds(model)


def torch_logits(model: resnet.ResNet, dtype: torch.dtype, pixels: Pixels) -> Logits:
    return np.asarray(predict_logits(model, pixels, batch_size=BATCH_SIZE, precision=dtype))


def time_runtimes(runtimes: dict[str, LogitsFn], pixels: Pixels) -> dict[str, dict[str, Any]]:
    """Images per second and milliseconds for one image: medians over ROUNDS, with the smallest and largest."""
    rates: dict[str, list[float]] = {name: [] for name in runtimes}
    milliseconds: dict[str, list[float]] = {name: [] for name in runtimes}
    for _ in range(ROUNDS):
        for name, logits_fn in runtimes.items():
            rates[name].append(BATCH_SIZE / median_seconds(partial(logits_fn, pixels[:BATCH_SIZE]), 1))
            milliseconds[name].append(1000 * median_seconds(partial(logits_fn, pixels[:1]), SINGLE_RUNS))
    return {
        name: {
            "images_per_second": round(float(np.median(rates[name])), 1),
            "images_per_second_range": [round(min(rates[name]), 1), round(max(rates[name]), 1)],
            "milliseconds": round(float(np.median(milliseconds[name])), 2),
            "milliseconds_range": [round(min(milliseconds[name]), 2), round(max(milliseconds[name]), 2)],
        }
        for name in runtimes
    }


def add_sizes(rows: dict[str, dict[str, Any]], folder: Path) -> None:
    for name, row in rows.items():
        file = f"{name.split()[-1]}.onnx" if name.startswith("ONNX") else saved_model.WEIGHTS_FILE
        row["file_mb"] = round((folder / file).stat().st_size / 1e6, 2)


def add_accuracies(
    rows: dict[str, dict[str, Any]], runtimes: dict[str, LogitsFn], pixels: Pixels, labels: np.ndarray[Any, Any]
) -> None:
    """Test accuracies, and the difference from the first runtime with its 95 % interval, on the same images."""
    correct = {}
    for name, logits_fn in runtimes.items():
        parts = [logits_fn(pixels[start : start + 1000]) for start in range(0, len(pixels), 1000)]
        correct[name] = np.concatenate(parts).argmax(axis=1) == labels
        rows[name]["accuracy"] = float(correct[name].mean())
    for name in list(runtimes)[1:]:
        rows[name]["difference"] = str(mcnemar_test(correct[name], correct[next(iter(runtimes))]))


def process_starts(folder: Path, scratch: Path) -> dict[str, dict[str, float]]:
    """Seconds from process start to the first answer for one photo, and the peak memory of that process."""
    photo = scratch / "photo.png"
    Image.fromarray(np.full((300, 400, 3), 90, np.uint8)).save(photo)
    starts = {}
    for name, model in (("torch", folder), ("ONNX Runtime int8", folder / "int8.onnx")):
        command = [sys.executable, "-m", "cifar_resnet", "predict", str(photo), "--model", str(model)]
        seconds = []
        for _ in range(STARTS):
            start = time.perf_counter()
            subprocess.run(command, cwd=scratch, capture_output=True, check=True)
            seconds.append(time.perf_counter() - start)
        starts[name] = {"seconds": round(float(np.median(seconds)), 2), "smallest": round(min(seconds), 2),
                        "largest": round(max(seconds), 2), "memory_mb": peak_memory_mb(command, scratch)}  # fmt: skip
    return starts


def peak_memory_mb(command: list[str], folder: Path) -> int:
    """Peak memory of a command, started by a small process: a child begins with the peak of its parent."""
    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=-3, check=True); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    wrapper = [sys.executable, "-S", "-c", code, *command]
    kilobytes = subprocess.run(wrapper, cwd=folder, capture_output=True, text=True, check=True).stdout
    return round(int(kilobytes) * 1024 / 1e6)


def installed_megabytes(extra: str) -> float:
    """Size of the installed packages that the project and one of its extras need, directly or indirectly."""
    todo, sizes = [Requirement(f"cifar-resnet[{extra}]")], dict[str, int]()
    while todo:
        requirement = todo.pop()
        extras = ["", *requirement.extras]
        try:
            package = distribution(requirement.name)
        except PackageNotFoundError:  # for another system
            continue
        if requirement.name.lower() not in sizes:
            files = (Path(str(file.locate())) for file in package.files or ())
            sizes[requirement.name.lower()] = sum(path.stat().st_size for path in files if path.exists())
            needs = [Requirement(text) for text in package.requires or ()]
            for need in needs:
                marker = need.marker
                if marker is None or any(marker.evaluate({"extra": name}) for name in extras):
                    todo.append(need)
    return sum(sizes.values()) / 1e6


def print_result(result: dict[str, Any]) -> None:
    console = Console()
    machine = ", ".join(f"{key} {value}" for key, value in {**result["machine"], **result["versions"]}.items())
    for name in NETWORKS:
        rows = result[name]
        columns = list(dict.fromkeys(key for row in rows.values() for key in row))
        table = Table(name, *columns, title=f"{machine}, commit {result['commit'][:7]}" if name == "default" else None)
        for runtime, row in rows.items():
            table.add_row(runtime, *(str(row.get(key, "")) for key in columns))
        console.print(table)
    for key in ("ceiling_tflops", "starts", "environment_mb"):
        console.print(key, result[key])
    console.print(f"-> {RESULT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
