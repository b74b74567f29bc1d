"""Batch normalization with a fixed scale, for plain and reflection-equivariant networks."""

from torch import Tensor, nn


class PairedBatchNorm(nn.Module):
    """Batch normalization that treats channel c and its mirror image, channel c + channels / 2, as one channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.paired = batch_norm(channels // 2, mirrored=False)

    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        pairs = x.permute(0, 2, 3, 1).reshape(count, height, 2 * width, channels // 2).permute(0, 3, 1, 2)
        y: Tensor = self.paired(pairs)
        return y.permute(0, 2, 3, 1).reshape(count, height, width, channels).permute(0, 3, 1, 2)


def batch_norm(channels: int, *, mirrored: bool) -> nn.Module:
    """Batch normalization whose scale stays 1; with `mirrored`, the statistics and the bias are those of pairs."""
    if mirrored:
        return PairedBatchNorm(channels)
    norm = nn.BatchNorm2d(channels)
    norm.weight.requires_grad_(False)
    return norm
