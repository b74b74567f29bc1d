"""Load a classifier: with ONNX Runtime if there is an exported file that is as fast as torch, otherwise with torch.

Both are imported when they are needed, because torch takes seconds, and either may not be installed.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cifar_resnet.errors import UserError
from cifar_resnet.files import file_hash
from cifar_resnet.inference.classifier import Classifier

if TYPE_CHECKING:
    import torch

    from cifar_resnet.data.dataset import Pixels
    from cifar_resnet.device import Device
    from cifar_resnet.inference.logits import Logits
    from cifar_resnet.models.resnet import ResNet

EXPORTED_SUFFIX = ".onnx"
EXPORTED_FILE, WEIGHTS_FILE = "model.onnx", "model.safetensors"
ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA, of AMD, and of both in Windows' Linux
FAST_BFLOAT16 = {"amx_bf16", "avx512_bf16"}  # CPU flags with which torch is faster than float32 of ONNX Runtime


def load_classifier(path: Path, device: Device = "auto") -> Classifier:
    """Load an exported file, or the model in a folder.

    Args:
        path: a .onnx file, or a folder with model.safetensors and model.json. A model.onnx in this folder is used
            instead if it is an export of these weights and at least as fast.
        device: see `select_device`.

    Raises:
        UserError: if the model or the device cannot be used, or if their runtime is not installed.
    """
    if path.suffix == EXPORTED_SUFFIX:
        return load_exported(path, device)
    exported = faster_export(path, device)
    if exported is not None:
        return exported
    require_torch(str(path))
    from cifar_resnet.device import disable_malloc_trim, select_device

    disable_malloc_trim()
    return load_torch(path, select_device(device))


def check_device(device: Device) -> None:
    """
    Raises:
        UserError: if an accelerator is requested and cannot be used.
    """
    if device not in ("auto", "cpu"):
        require_torch(f"device {device}")
        from cifar_resnet.device import select_device

        select_device(device)


def require_torch(user: str) -> None:
    if find_spec("torch") is None:
        raise UserError(f"{user}: needs torch, which is not installed: pip install 'cifar-resnet[train]', or pass a "
                        "model.onnx of `cifar-resnet export`")  # fmt: skip


def load_exported(path: Path, device: Device) -> Classifier:
    if device not in ("auto", "cpu"):
        raise UserError(f"{path}: an exported model computes on the CPU, not on {device}; use auto or cpu")
    if find_spec("onnxruntime") is None:
        raise UserError(f"{path}: needs ONNX Runtime, which is not installed: pip install 'cifar-resnet[onnx]'")
    from cifar_resnet.inference.onnx_session import open_exported

    return open_exported(path)[0]


def faster_export(folder: Path, device: Device) -> Classifier | None:
    """The model.onnx in a folder if it is an export of the weights beside it and at least as fast as torch."""
    path = folder / EXPORTED_FILE
    if device not in ("auto", "cpu") or not path.is_file() or find_spec("onnxruntime") is None:
        return None
    from cifar_resnet.inference.onnx_session import open_exported

    try:
        classifier, metadata = open_exported(path)
    except UserError as error:
        print(f"{error}; it is ignored", file=sys.stderr)
        return None
    weights = folder / WEIGHTS_FILE
    if weights.is_file() and file_hash(weights) != metadata.weights_md5:
        print(f"{path}: not an export of the {WEIGHTS_FILE} beside it; it is ignored", file=sys.stderr)
        return None
    return classifier if is_fast(metadata.precision, device) else None


def is_fast(precision: str, device: Device) -> bool:
    """Whether an exported model is at least as fast as torch, as far as can be told without loading torch.

    Measured: int8 is faster than torch on every kind of CPU, float32 is slower than bfloat16 (docs/results.md,
    benchmarks/LOG.md). On accelerators, torch is expected to be faster.
    """
    if find_spec("torch") is None:
        return True
    if device == "auto" and (sys.platform == "darwin" or any(Path(name).exists() for name in ACCELERATORS)):
        return False
    information = Path("/proc/cpuinfo")
    flags = information.read_text(encoding="utf-8").split() if information.exists() else []
    return precision == "int8" or FAST_BFLOAT16.isdisjoint(flags)


def load_torch(folder: Path, target: torch.device) -> Classifier:
    """The model in a folder, in the precision that is fast on the device.

    Raises:
        UserError: if the model cannot be used; when it computes, if the device is out of memory.
    """
    from cifar_resnet.device import select_dtype
    from cifar_resnet.models.saved_model import load_model

    return torch_classifier(*load_model(folder, target), select_dtype("auto", target)[0])


def torch_classifier(network: ResNet, config: dict[str, Any], precision: torch.dtype) -> Classifier:
    """
    Args:
        config: the content of the model's model.json.
    """
    from cifar_resnet.device import report_out_of_memory
    from cifar_resnet.inference.predictor import predict_logits
    from cifar_resnet.models.saved_model import fitted_temperature

    def logits_fn(pixels: Pixels) -> Logits:
        with report_out_of_memory("lower --batch-size, or use --device cpu"):
            logits = predict_logits(network, pixels, batch_size=max(1, len(pixels)), precision=precision)
        return np.asarray(logits)

    temperature, temperature_tta = (fitted_temperature(config, augmented=augmented) for augmented in (False, True))
    return Classifier(logits_fn, tuple(config["classes"]), temperature, temperature_tta, network.mirror_views)
