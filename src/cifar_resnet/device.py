"""Device, dtype and memory of this machine."""

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from cifar_resnet.errors import UserError

Device = Literal["auto", "cpu", "cuda", "mps"]


def select_device(requested: Device = "auto") -> torch.device:
    """The device to compute on; `auto` takes an accelerator that works, otherwise the CPU.

    A GPU that PyTorch finds can be unusable: too old for this build, out of memory, or with a driver that does not
    fit. One line on stderr says so.

    Raises:
        UserError: if the requested device is not available or does not work.
    """
    accelerator = None if requested == "cpu" else torch.accelerator.current_accelerator(check_available=True)
    if requested == "cpu" or (requested == "auto" and accelerator is None):
        return torch.device("cpu")
    if accelerator is None or requested not in ("auto", accelerator.type):
        available = "cpu" if accelerator is None else f"cpu and {accelerator.type}"
        raise UserError(f"device {requested} is not available, PyTorch finds {available}; use auto or one of these")
    problem = device_problem(torch.device(accelerator.type))
    if not problem:
        return torch.device(accelerator.type)
    if requested == "auto":
        print(f"device {accelerator.type} cannot be used ({problem}), the CPU computes instead", file=sys.stderr)
        return torch.device("cpu")
    raise UserError(f"device {requested} cannot be used ({problem}); free or repair it, or use cpu")


def device_problem(target: torch.device) -> str:
    """Why a small convolution fails on a device; empty if it works."""
    try:
        images, filters = torch.ones(1, 3, 8, 8, device=target), torch.ones(4, 3, 3, 3, device=target)
        torch.nn.functional.conv2d(images, filters).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return " ".join(str(error).split())[:150] or type(error).__name__
    return ""


@contextmanager
def report_out_of_memory(advice: str) -> Iterator[None]:
    """
    Raises:
        UserError: if an accelerator runs out of memory in the block; it ends with the advice.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"the accelerator is out of memory ({reason}); {advice}") from None


def select_dtype(requested: str, target: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of convolutions and matrix products, and the reason.

    Without AMX or AVX512-bf16, bfloat16 convolutions on a CPU are tens of times slower than float32 (pytorch#183815).
    """
    slow = "the CPU has neither AMX nor AVX512-bf16"
    if requested == "bfloat16" and target.type == "cpu" and not fast_bfloat16():
        return torch.bfloat16, f"params.yaml sets it, but {slow}: float32 is tens to hundreds of times faster"
    if requested != "auto":
        return getattr(torch, requested), "params.yaml sets it"
    if target.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
        return (torch.bfloat16, "the GPU supports it") if fast else (torch.float32, "the GPU has no bfloat16")
    if target.type != "cpu":
        return torch.float32, f"bfloat16 is not tested on {target.type}"
    if name := fast_bfloat16():
        return torch.bfloat16, f"the CPU has {name}"
    return torch.float32, f"{slow}: training takes about three times as long"


def fast_bfloat16() -> str | None:
    """What makes bfloat16 fast on this CPU, if anything does."""
    capabilities, names = torch.cpu.get_capabilities(), {"amx_bf16": "AMX", "avx512_bf16": "AVX512-bf16"}
    return next((name for key, name in names.items() if capabilities.get(key, False)), None)


def disable_malloc_trim() -> None:
    """Keep freed memory in the process (glibc only).

    Otherwise glibc returns it to the system, and page faults take up to a quarter of a training step.
    """
    mmap_max, trim_threshold = -4, -1
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)  # never


def dtype_name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")


def environment_info(precision: torch.dtype) -> dict[str, str | int | float]:
    """The software, hardware and settings on which speed and accuracy depend, and the peak memory so far."""
    return {
        "torch": str(torch.__version__),
        "cpu": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "threads": torch.get_num_threads(),
        "precision": dtype_name(precision),
        "peak_memory_gb": round(peak_memory_gb(), 2),
    }


def peak_memory_gb() -> float:
    """Peak resident memory of this process, in GB (1e9 bytes)."""
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 1e9
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
