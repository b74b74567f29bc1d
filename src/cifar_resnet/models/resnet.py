"""The network family: residual networks for 32x32 images; per-layer hyperparameters are parallel lists.

Residual blocks: He et al., "Deep Residual Learning for Image Recognition", 2015, section 3.
Whitening stem, identity initialization and pooling before batch normalization: K. Jordan, "94% on CIFAR-10 in 3.29
Seconds on a Single GPU", 2024, sections 3.1 to 3.3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnet.errors import UserError
from cifar_resnet.models.batch_norm import batch_norm
from cifar_resnet.models.convolution import Convolution
from cifar_resnet.models.mirrored_convolution import MirroredConvolution
from cifar_resnet.params.schema import ModelParams

ACTIVATIONS = {"silu": nn.SiLU, "gelu": nn.GELU, "relu": nn.ReLU}


class Block(nn.Module):
    """Two convolutions and a skip path, which is the identity unless the shape changes."""

    def __init__(
        self, params: ModelParams, inputs: int, outputs: int, kernel: int, skip_kernel: int, stride: int
    ) -> None:
        super().__init__()
        mirrored, activation = params.mirrored, ACTIVATIONS[params.activation]
        self.branch = nn.Sequential(
            make_convolution(inputs, outputs, kernel, stride, mirrored=mirrored),
            batch_norm(outputs, mirrored=mirrored),
            activation(),
            make_convolution(outputs, outputs, kernel, mirrored=mirrored),
            batch_norm(outputs, mirrored=mirrored),
        )
        same_shape = inputs == outputs and stride == 1
        self.skip = (
            nn.Identity()
            if same_shape
            else nn.Sequential(
                make_convolution(inputs, outputs, skip_kernel, stride, mirrored=mirrored),
                batch_norm(outputs, mirrored=mirrored),
            )
        )
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.branch(x) + self.skip(x))
        return out


class ResNet(nn.Module):
    """Stem, residual layers, pooling and a linear layer; the network normalizes its own input.

    Args:
        params: the network's hyperparameters.
        channel_mean: mean of each channel of the training images, 0 to 1.
        channel_std: standard deviation of each channel, in the same unit.
        num_classes: number of logits.

    Attributes:
        mirror_views: whether test-time augmentation shows mirror images as well. At first, all networks but mirrored
            ones have them; a network that never saw a mirror image in training needs False.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, params: ModelParams, channel_mean: list[float], channel_std: list[float], *, num_classes: int
    ) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(channel_mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(channel_std).view(1, 3, 1, 1))
        self.head_pool_kernel, self.mirrored = params.head_pool_kernel, params.mirrored
        self.mirror_views = not params.mirrored
        self.head_pool = F.max_pool2d if params.head_pool == "max" else F.avg_pool2d
        self.stem = make_stem(params)
        widths = [params.stem_channels, *params.channels]
        self.layers = nn.Sequential(*(make_layer(params, i, widths[i]) for i in range(len(params.channels))))
        pooled_side = params.resolution(32) // params.head_pool_kernel
        self.head = nn.Linear(widths[-1] // (1 + params.mirrored) * pooled_side**2, num_classes)
        nn.init.normal_(self.head.weight, std=1 / self.head.in_features)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, C) of images (N, 3, H, W) with values 0 to 255, any dtype."""
        x = (images - self.mean) / self.std
        x = self.layers(self.stem(x))
        x = self.head_pool(x, min(self.head_pool_kernel, x.shape[-1]))
        if self.mirrored:
            first, second = x.chunk(2, dim=1)
            x = first + second.flip(-1)  # the same for an image and its mirror image
        logits: Tensor = self.head(x.flatten(1))
        return logits


def make_stem(params: ModelParams) -> nn.Sequential:
    activation = ACTIVATIONS[params.activation]()
    if params.stem == "convolution":
        conv = make_convolution(3, params.stem_channels, 3, mirrored=False)
        return nn.Sequential(conv, batch_norm(params.stem_channels, mirrored=False), activation)
    whitening = nn.Conv2d(3, params.stem_channels, kernel_size=2, bias=False)
    whitening.weight.requires_grad_(False)
    return nn.Sequential(whitening, activation)


def make_layer(params: ModelParams, index: int, inputs: int) -> nn.Sequential:
    """One residual layer.

    With `downsample: pool`, a convolution, pooling and batch normalization come before the blocks. With `stride`, the
    first block changes the shape.
    """
    outputs, kernel, skip_kernel = params.channels[index], params.kernels[index], params.skip_kernels[index]
    downsampling: list[nn.Module] = []
    stride = 1
    if params.downsample == "pool":
        downsampling = [
            make_convolution(inputs, outputs, skip_kernel, mirrored=params.mirrored, pooled=True),
            symmetric_pooling() if params.mirrored else nn.MaxPool2d(2),
            batch_norm(outputs, mirrored=params.mirrored),
            ACTIVATIONS[params.activation](),
        ]
        inputs = outputs
    elif index > 0:
        stride = 2
    blocks = [Block(params, inputs, outputs, kernel, skip_kernel, stride)]
    for _ in range(params.blocks[index] - 1):
        blocks.append(Block(params, outputs, outputs, kernel, skip_kernel, 1))
    return nn.Sequential(*downsampling, *blocks)


def symmetric_pooling() -> nn.MaxPool2d:
    """Halve an odd number of pixels, the output size of a whitening stem, with left-right symmetry."""
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


def make_convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, *, mirrored: bool, pooled: bool = False
) -> nn.Conv2d:
    """A convolution without bias; its first filters start as the identity.

    Args:
        pooled: whether pooling follows, which halves the resolution.
    """
    if mirrored:
        conv: nn.Conv2d = MirroredConvolution(inputs, outputs, kernel)
    else:
        conv = Convolution(inputs, outputs, kernel, stride, even_output=pooled)
    with torch.no_grad():
        for filters in conv.parameters():
            nn.init.dirac_(filters[: filters.shape[1]])
    return conv


def build_model(
    params: ModelParams, channel_mean: list[float], channel_std: list[float], *, num_classes: int
) -> ResNet:
    """The network in float32 on the CPU, channels last, with random weights from torch's global generator.

    Raises:
        UserError: if the network has more parameters than `max_parameters`.
    """
    least = least_parameters(params)
    if least > 10 * params.max_parameters:  # building it could take all memory
        raise too_many_parameters(f"at least {least:,}", params)
    model = ResNet(params, channel_mean, channel_std, num_classes=num_classes)
    count = num_parameters(model)
    if count > params.max_parameters:
        raise too_many_parameters(f"{count:,}", params)
    return model.to(memory_format=torch.channels_last)


def too_many_parameters(found: str, params: ModelParams) -> UserError:
    return UserError(
        f"params.yaml: the model has {found} parameters, model.max_parameters allows {params.max_parameters:,}; "
        "reduce model.blocks or model.channels"
    )


def least_parameters(params: ModelParams) -> int:
    """A lower bound of the number of parameters: one convolution per block, and one where a later layer begins."""
    widths = params.channels
    sizes = zip(params.blocks, params.kernels, widths, strict=True)
    blocks = sum(count * (kernel * width) ** 2 for count, kernel, width in sizes)
    skips = sum(a * b * kernel**2 for a, b, kernel in zip(widths, widths[1:], params.skip_kernels[1:], strict=False))
    return (blocks + skips) // (1 + params.mirrored)


@torch.no_grad()
def init_whitening(model: ResNet, images: Tensor, epsilon: float) -> None:
    """Set a whitening stem's filters to those that whiten 2x2 patches, and their negatives.

    In a mirrored network, the mirror images of the filters are added too. A network without a whitening stem does not
    change.

    Args:
        images: uint8 (N, 3, 32, 32), a few thousand suffice.
        epsilon: added to the eigenvalues; it limits the amplification of weak components, which are mostly noise.
    """
    conv = model.stem[0]
    assert isinstance(conv, nn.Conv2d)
    if conv.weight.requires_grad:
        return
    x = (images - model.mean) / model.std
    patches = F.unfold(x, kernel_size=2).transpose(1, 2).reshape(-1, 6, 2)
    if not model.mirrored:
        filters = whitening_filters(patches.flatten(1), epsilon).reshape(12, 3, 2, 2)
        conv.weight.copy_(torch.cat([filters, -filters]))
        return
    left, right = patches.unbind(2)
    even, odd = whitening_filters((left + right) / 2**0.5, epsilon), whitening_filters((left - right) / 2**0.5, epsilon)
    filters = torch.stack([even + odd, even - odd], dim=2).reshape(6, 3, 2, 2) / 2
    half = torch.cat([filters, -filters])
    conv.weight.copy_(torch.cat([half, half.flip(-1)]))


def whitening_filters(values: Tensor, epsilon: float) -> Tensor:
    """(D, D): the eigenvectors of the second moments of `values` (N, D) as rows, scaled to unit response."""
    eigenvalues, eigenvectors = torch.linalg.eigh(values.T @ values / len(values))
    filters: Tensor = (eigenvectors / torch.sqrt(eigenvalues + epsilon)).T
    return filters


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module) -> int:
    """Multiply-adds of the convolutions and the linear layer for one 32x32 image."""
    counts: list[int] = []

    def count(module: nn.Module, _: tuple[Tensor], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d | nn.Linear)
        counts.append(module.weight[0].numel() * output[0].numel())

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    training = model.training
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32, device=next(model.parameters()).device))
    model.train(training)
    for hook in hooks:
        hook.remove()
    return sum(counts)
