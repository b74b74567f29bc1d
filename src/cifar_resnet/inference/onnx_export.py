"""Export a saved model to one ONNX file, compared with torch before it is written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch

from cifar_resnet.data.dataset import Pixels, read_array
from cifar_resnet.errors import UserError
from cifar_resnet.files import atomic_write, file_hash, read_json
from cifar_resnet.inference.onnx_file import Metadata
from cifar_resnet.inference.onnx_graph import build_graph
from cifar_resnet.inference.onnx_quantize import quantize
from cifar_resnet.inference.onnx_session import open_exported
from cifar_resnet.inference.predictor import predict_logits
from cifar_resnet.models.resnet import ResNet
from cifar_resnet.models.saved_model import WEIGHTS_FILE, fitted_temperature, load_model
from cifar_resnet.params.schema import ModelParams

Precision = Literal["float32", "int8"]
LICENSE = "MIT"
TRAIN_IMAGES, STATISTICS = "data/prepared/train_images.npy", "data/prepared/statistics.json"
NUM_CALIBRATION, NUM_COMPARED = 300, 200  # training images
MAX_DIFFERENCE = 1e-3  # of a logit, in float32; typical logits are 1 to 10 and differ by 1e-5
MIN_AGREEMENT = 0.9  # share of images to which int8 gives the same class


@dataclass(frozen=True)
class ExportDifference:
    """An exported file and torch in float32, on the same images.

    Attributes:
        difference: the largest of a logit.
        agreement: share of images with the same class.
        images: number and kind of images.
    """

    difference: float
    agreement: float
    images: str

    def __str__(self) -> str:
        return (f"largest difference of a logit from torch {self.difference:.2g}, same class for {self.agreement:.1%} "
                f"of {self.images}")  # fmt: skip


def export_model(folder: Path, output: Path, *, precision: Precision, root: Path) -> ExportDifference:
    """Write the model in `folder` to the file `output`, atomically, after a comparison with torch.

    Args:
        root: the project, whose training images calibrate int8 and are compared. Without them, or if they are of
            other classes, float32 is compared on noise.

    Raises:
        UserError: if the model cannot be used, if int8 has no training images of the model's classes, or if the outputs
            differ too much.
    """
    model, config = load_model(folder, torch.device("cpu"))
    calibration, compared = read_train_images(root, config["classes"])
    if precision == "int8" and not len(calibration):
        raise UserError(
            f"{TRAIN_IMAGES}: not found, or of other classes than the model; int8 needs training images: "
            "`dvc repro preprocess` writes those of params.yaml"
        )
    graph = build_graph(model, ModelParams(**config["architecture"]), fitted_temperature(config, augmented=False))
    graph = quantize(graph, calibration) if precision == "int8" else graph
    metadata = Metadata(
        classes=config["classes"], mirror_views=model.mirror_views, precision=precision, license=LICENSE,
        temperature=fitted_temperature(config, augmented=False),
        temperature_tta=fitted_temperature(config, augmented=True),
        weights_md5=file_hash(folder / WEIGHTS_FILE), provenance=config.get("provenance", {}),
    )  # fmt: skip
    onnx.helper.set_model_props(graph, metadata.to_strings())
    onnx.checker.check_model(graph, full_check=True)
    with atomic_write(output) as temporary:
        onnx.save(graph, temporary)
        kind = "training images" if len(calibration) else "images of noise"
        comparison = compare_with_torch(temporary, model, compared, kind)
        if comparison.agreement < MIN_AGREEMENT or (precision == "float32" and comparison.difference > MAX_DIFFERENCE):
            raise UserError(f"{folder}: the exported model differs too much and is not kept ({comparison})")
    return comparison


def classes_of_data(root: Path) -> list[str] | None:
    """The classes of the images in data/prepared; None if they are not known.

    Raises:
        UserError: if statistics.json is damaged.
    """
    try:
        classes: list[str] | None = read_json(root / STATISTICS)["classes"] if (root / STATISTICS).exists() else None
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{STATISTICS} is damaged ({error}); `dvc repro preprocess` writes it again") from None
    return classes


def read_train_images(root: Path, classes: list[str]) -> tuple[Pixels, Pixels]:
    """Images for the calibration and others for the comparison; without images of these classes, none and noise."""
    if not (root / TRAIN_IMAGES).is_file() or classes_of_data(root) not in (classes, None):
        noise = np.random.default_rng(0).integers(0, 256, (NUM_COMPARED, 3, 32, 32), np.uint8)
        return noise[:0], noise
    pixels = read_array(root / TRAIN_IMAGES, mmap_mode="r")[: NUM_CALIBRATION + NUM_COMPARED]
    num_calibration = len(pixels) * NUM_CALIBRATION // (NUM_CALIBRATION + NUM_COMPARED)
    return np.array(pixels[:num_calibration]), np.array(pixels[num_calibration:])


def compare_with_torch(path: Path, model: ResNet, pixels: Pixels, kind: str) -> ExportDifference:
    classifier, _ = open_exported(path)
    exported = classifier.logits_fn(pixels)
    logits = predict_logits(model, pixels, batch_size=len(pixels), precision=torch.float32).numpy()
    agreement = float(np.mean(exported.argmax(axis=1) == logits.argmax(axis=1)))
    return ExportDifference(float(np.abs(exported - logits).max()), agreement, f"{len(pixels)} {kind}")
