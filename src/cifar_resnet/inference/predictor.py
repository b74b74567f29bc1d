"""Logits of a trained network, with and without test-time augmentation."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from cifar_resnet.data.dataset import Pixels
from cifar_resnet.inference.logits import Logits, augmented_logits
from cifar_resnet.models.resnet import ResNet


@torch.inference_mode()
def predict_logits(
    model: ResNet, pixels: Pixels, *, batch_size: int, precision: torch.dtype, augmented: bool = False
) -> Tensor:
    """Logits float32 (N, C), on the CPU, of uint8 (N, 3, 32, 32); `augmented` averages several views of each image."""
    target = model.mean.device
    model.eval()

    def batch_logits(batch: Pixels) -> Logits:
        images = torch.from_numpy(batch).to(target, memory_format=torch.channels_last)
        with torch.autocast(target.type, dtype=precision, enabled=precision != torch.float32):
            return np.asarray(model(images).float().cpu())

    logits_fn = partial(augmented_logits, batch_logits, mirror_views=model.mirror_views) if augmented else batch_logits
    batches = [pixels[start : start + batch_size] for start in range(0, max(1, len(pixels)), batch_size)]
    return torch.from_numpy(np.concatenate([logits_fn(batch) for batch in batches]))


def reflect_pad(images: Tensor, pixels: int) -> Tensor:
    """Pad square images of any dtype by `pixels` on every side, reflected at the border."""
    if pixels == 0:
        return images
    positions = torch.arange(-pixels, images.shape[-1] + pixels)
    last = images.shape[-1] - 1
    source = last - (last - positions.abs()).abs()
    return images[:, :, source][:, :, :, source]
