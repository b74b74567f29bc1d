"""Logits of a trained network, with and without test-time augmentation."""

import torch
from torch import Tensor

from cifar_resnet import augment
from cifar_resnet.images import Pixels
from cifar_resnet.resnet import ResNet


@torch.inference_mode()
def predict(
    model: ResNet, pixels: Pixels, *, batch_size: int, precision: torch.dtype, augmented: bool = False
) -> Tensor:
    """Logits float32 (N, 10) of uint8 (N, 3, 32, 32), on the CPU. `augmented` averages six views of every image."""
    device = model.mean.device
    model.eval()
    logits = []
    for rows in torch.from_numpy(pixels).split(batch_size):
        batch = rows.to(device)
        with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            found = views(model, batch) if augmented else model(batch.contiguous(memory_format=torch.channels_last))
        logits.append(found.float().cpu())
    return torch.cat(logits)


def views(model: ResNet, images: Tensor) -> Tensor:
    """Mean logits of an image and its mirror image, half from their own place, half from one pixel up-left and
    down-right of it (K. Jordan, 2024, section 3.5). A mirrored network gives both images the same logits."""
    padded = augment.reflect_pad(images, 1)
    total = torch.zeros((), device=images.device)
    for offset, weight in ((1, 0.25), (0, 0.125), (2, 0.125)):
        view = padded[:, :, offset : offset + 32, offset : offset + 32].contiguous(memory_format=torch.channels_last)
        one = model(view).float()
        total = total + weight * (one + (one if model.mirrored else model(view.flip(-1)).float()))
    return total
