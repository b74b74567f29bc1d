"""What the machine offers: device, fast number format, memory."""

import ctypes
import platform
import sys
from typing import Literal

import torch

from cifar_resnet.errors import UserError

Device = Literal["auto", "cpu", "cuda", "mps"]


def select_device(requested: Device = "auto") -> torch.device:
    """The device to compute on; `auto` takes an accelerator if torch finds one that works, otherwise the CPU.

    Raises:
        UserError: if the requested device is not available.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if requested == "cpu" or (requested == "auto" and accelerator is None):
        return torch.device("cpu")
    if accelerator is not None and requested in ("auto", accelerator.type):
        return torch.device(accelerator.type)
    available = "cpu" if accelerator is None else f"cpu and {accelerator.type}"
    raise UserError(f"device {requested} is not available, torch offers {available}; take auto or one of these")


def select_dtype(requested: str, target: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of convolutions and matrix products, and the reason in words.

    Without AMX or AVX512-bf16, bfloat16 convolutions on a CPU are tens of times slower than float32 (pytorch#183815).
    """
    if requested != "auto":
        return getattr(torch, requested), "params.yaml says so"
    if target.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
        return (torch.bfloat16, "the GPU is fast at it") if fast else (torch.float32, "the GPU has no bfloat16")
    if target.type != "cpu":
        return torch.float32, f"bfloat16 was not tested on {target.type}"
    for capability, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-bf16")):
        if torch.cpu.get_capabilities().get(capability, False):
            return torch.bfloat16, f"the CPU has {name}"
    return torch.float32, "the CPU has neither AMX nor AVX512-bf16: training takes about three times as long"


def disable_malloc_trim() -> None:
    """Tell glibc to keep freed memory. Returning it and faulting it in again costs up to a quarter of a training step.

    Does nothing with another C library.
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
    """What speed and accuracy depend on besides the code."""
    return {
        "torch": str(torch.__version__),
        "cpu": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "threads": torch.get_num_threads(),
        "precision": dtype_name(precision),
        "peak_memory_gb": round(peak_memory_gb(), 2),
    }


def peak_memory_gb() -> float:
    """The most memory that this process has held, in GB (1e9 bytes)."""
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 1e9
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
