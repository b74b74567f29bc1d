"""CIFAR-10 with a residual network under five million parameters.

    import cifar_resnet
    model = cifar_resnet.load()            # what `cifar-resnet predict` uses
    model.predict(images).class_names      # images: uint8 (N, 32, 32, 3)

Torch and MLflow are imported when they are needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from cifar_resnet.device import Device
    from cifar_resnet.inference.model import Model

__all__ = ["Model", "__version__", "load"]
__version__: str


def load(source: str | Path | None = None, *, device: Device = "auto") -> Model:
    """Load a trained model.

    Args:
        source: "pretrained"; folder or file of a saved model; "champion", "challenger", a version number or a run id
            in MLflow; or an MLflow URI like "models:/cifar10-resnet@champion". By default the first that exists of the
            champion, data/model and the pretrained weights; a line on stderr names it.
        device: "auto" (an accelerator if there is one), "cpu", "cuda" or "mps".

    Raises:
        cifar_resnet.errors.UserError: if the model or device does not exist.
    """
    from cifar_resnet.registry.load import load_named_model

    return load_named_model(source, device=device)


def __getattr__(name: str) -> Any:
    if name == "Model":
        from cifar_resnet.inference.model import Model

        return Model
    if name == "__version__":
        from importlib.metadata import version

        return version("cifar-resnet")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
