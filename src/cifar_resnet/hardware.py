"""What the machine offers: device, fast precision, memory that stays mapped."""

import ctypes
import platform
from pathlib import Path

import psutil
import torch


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(wanted: str, on: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of convolutions and matrix products, and the reason in words.

    Without AMX or AVX512-bf16 a CPU's bfloat16 convolutions are tens of times slower than float32 (pytorch#183815).
    """
    if wanted != "auto":
        return getattr(torch, wanted), "as params.yaml says"
    if on.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
        return (torch.bfloat16, "the GPU is fast at it") if fast else (torch.float32, "the GPU has no bfloat16")
    for capability, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-bf16")):
        if torch.cpu.get_capabilities().get(capability, False):
            return torch.bfloat16, f"the CPU has {name}"
    return torch.float32, "the CPU has neither AMX nor AVX512-bf16: expect 3 to 10 times the time stated in the README"


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
    mallopt(trim_threshold, 2**31 - 1)


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory_gb() -> float:
    """The most memory this process has held, in GB (1e9 bytes)."""
    memory = psutil.Process().memory_info()
    peak = Path("/proc/self/status")
    if peak.exists():
        for line in peak.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e9
    return float(memory.rss) / 1e9
