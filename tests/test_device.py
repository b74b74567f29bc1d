"""Choice of device and dtype, and the parts of the library that differ between operating systems."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from cifar_resnet import device
from cifar_resnet.errors import UserError

DEVICE_TYPES = ("cpu", "cuda", "mps")
# The Linux builds of these libraries import fcntl and resource, so they are loaded first. sys.platform is changed only
# for peak_memory_gb: with "win32" during the imports, the libraries would look for Windows functions.
WITHOUT_UNIX_MODULES = """
import importlib, pkgutil, sys, types
import dvc.repo, filelock, psutil

sys.modules["fcntl"] = sys.modules["resource"] = None
import cifar_resnet

for module in pkgutil.walk_packages(cifar_resnet.__path__, "cifar_resnet."):
    importlib.import_module(module.name)
from cifar_resnet import device

# Only Windows has peak_wset, in bytes.
psutil.Process.memory_info = lambda self: types.SimpleNamespace(peak_wset=2_500_000_000)
sys.platform = "win32"
print(device.peak_memory_gb(), len([name for name in sys.modules if name.startswith("cifar_resnet.")]))
"""


def set_accelerator(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    accelerator = None if name is None else torch.device(name)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: accelerator)
    monkeypatch.setattr(device, "device_problem", lambda target: "")


@pytest.mark.parametrize("accelerator", [None, "cuda", "mps"])
def test_the_cpu_is_always_available(monkeypatch: pytest.MonkeyPatch, accelerator: str | None) -> None:
    set_accelerator(monkeypatch, accelerator)
    assert device.select_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("accelerator", "expected"), [(None, "cpu"), ("cuda", "cuda"), ("mps", "mps")])
def test_auto_selects_the_accelerator_and_otherwise_the_cpu(
    monkeypatch: pytest.MonkeyPatch, accelerator: str | None, expected: str
) -> None:
    set_accelerator(monkeypatch, accelerator)
    assert device.select_device() == device.select_device("auto") == torch.device(expected)


def test_an_accelerator_can_be_requested_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    set_accelerator(monkeypatch, "mps")
    assert device.select_device("mps") == torch.device("mps")


@pytest.mark.parametrize(
    ("requested", "accelerator", "available"),
    [("cuda", None, "cpu"), ("mps", None, "cpu"), ("cuda", "mps", "cpu and mps"), ("mps", "cuda", "cpu and cuda")],
)
def test_a_missing_device_is_an_error_that_names_the_available_ones(
    monkeypatch: pytest.MonkeyPatch, requested: device.Device, accelerator: str | None, available: str
) -> None:
    set_accelerator(monkeypatch, accelerator)
    with pytest.raises(UserError, match=f"^device {requested} is not available, PyTorch finds {available}; "):
        device.select_device(requested)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a GPU that torch cannot use; here there is none at all")
def test_an_accelerator_that_does_not_work_is_named_and_replaced_by_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    assert device.select_device("auto") == torch.device("cpu")
    line = capsys.readouterr().err
    assert line.startswith("device cuda cannot be used (")
    assert line.endswith("), the CPU computes instead\n")
    assert line.count("\n") == 1
    with pytest.raises(UserError, match=r"^device cuda cannot be used \(.+\); free or repair it, or use cpu$"):
        device.select_device("cuda")


def test_running_out_of_memory_is_one_line_with_advice() -> None:
    error = pytest.raises(UserError, match=r"out of memory \(CUDA out of memory\); lower the batch size$")
    with error, device.report_out_of_memory("lower the batch size"):
        raise torch.OutOfMemoryError("CUDA out\nof memory")
    with pytest.raises(RuntimeError, match="another"), device.report_out_of_memory(""):
        raise RuntimeError("another")


def test_auto_precision_on_mps_is_float32() -> None:
    assert device.select_dtype("auto", torch.device("mps"))[0] == torch.float32


@pytest.mark.parametrize("name", DEVICE_TYPES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_precision_in_params_applies_to_every_device(name: str, precision: str) -> None:
    assert device.select_dtype(precision, torch.device(name))[0] == getattr(torch, precision)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({}, torch.float32), ({"amx_bf16": True}, torch.bfloat16), ({"avx512_bf16": True}, torch.bfloat16)],
)
def test_auto_precision_on_a_cpu_is_bfloat16_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert device.select_dtype("auto", torch.device("cpu"))[0] == expected


def test_bfloat16_on_a_cpu_where_it_is_slow_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    dtype, reason = device.select_dtype("bfloat16", torch.device("cpu"))
    assert dtype == torch.bfloat16
    assert reason.endswith("float32 is tens to hundreds of times faster")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert device.select_dtype("bfloat16", torch.device("cpu"))[1] == "params.yaml sets it"


def test_all_modules_can_be_imported_without_fcntl_and_resource_as_on_windows() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_UNIX_MODULES], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak, num_modules = done.stdout.split()
    assert float(peak) == 2.5
    assert int(num_modules) >= len([*(ROOT / "src/cifar_resnet").rglob("[!_]*.py")])


def test_peak_memory_is_that_of_this_process() -> None:
    assert 0.05 < device.peak_memory_gb() < 1000  # torch alone needs more than 50 MB
