"""What the machine offers: device, fast precision, memory that stays mapped."""

import ctypes
import platform
import resource
import sys

import torch


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(wanted: str, on: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of convolutions and matrix products, and the reason in words.

    Without AMX or AVX512-bf16 a CPU's bfloat16 convolutions are tens of times slower than float32 (pytorch#183815).
    """
    if wanted != "auto":
        return getattr(torch, wanted), "params.yaml says so"
    if on.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
        return (torch.bfloat16, "the GPU is fast at it") if fast else (torch.float32, "the GPU has no bfloat16")
    for capability, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-bf16")):
        if torch.cpu.get_capabilities().get(capability, False):
            return torch.bfloat16, f"the CPU has {name}"
    return torch.float32, "the CPU has neither AMX nor AVX512-bf16: expect several times the README's time"


def keep_memory() -> None:
    """Tell glibc to keep freed memory: handing it back and faulting it in again costs up to a quarter of a step.

    Does nothing where the C library is another one.
    """
    mmap_max, trim_threshold = -4, -1
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)  # never


def name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")


def facts(used: torch.dtype) -> dict[str, str | int | float]:
    """What a figure of speed or accuracy depends on besides the code."""
    return {
        "torch": str(torch.__version__),
        "cpu": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "threads": torch.get_num_threads(),
        "precision": name(used),
        "peak_memory_gb": round(peak_memory_gb(), 2),
    }


def peak_memory_gb() -> float:
    """The most memory this process has held, in GB (1e9 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
