import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import Tensor

from cifar_resnet.models import resnet
from cifar_resnet.models.convolution import Convolution, SideBySide
from cifar_resnet.params.file import load_params


def random_case(side: int, kernel: int) -> tuple[Tensor, Tensor]:
    """Images and filters, both with gradients, in double precision."""
    torch.manual_seed(0)
    x, weight = torch.randn(6, 4, side, side), torch.randn(5, 4, kernel, kernel)
    return x.double().requires_grad_(), weight.double().requires_grad_()


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("side", [5, 6, 7, 15])
def test_the_outputs_that_pooling_does_not_use_are_not_computed(side: int, kernel: int) -> None:
    x, weight = random_case(side, kernel)
    conv = Convolution(4, 5, kernel, even_output=True).double()
    conv.weight = torch.nn.Parameter(weight.detach())
    y, complete = conv(x), F.conv2d(x, weight, padding=kernel // 2)
    assert y.shape[2:] == (side // 2 * 2, side // 2 * 2)
    assert complete.shape[2:] == (side, side)
    pooled, expected = F.max_pool2d(y, 2), F.max_pool2d(complete, 2)
    torch.testing.assert_close(pooled, expected)
    factors = torch.randn_like(pooled)
    gradients = torch.autograd.grad(pooled, [x, conv.weight], factors)
    for gradient, other in zip(gradients, torch.autograd.grad(expected, [x, weight], factors), strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("side", [5, 7, 8])
def test_images_side_by_side_have_the_gradients_of_single_images(side: int, kernel: int, padded: bool) -> None:
    x, weight = random_case(side, kernel)
    margin = kernel // 2 if padded else 0
    y: Tensor = SideBySide.apply(x, weight, margin)
    expected = F.conv2d(x, weight, padding=margin)
    assert torch.equal(y, expected)
    factors = torch.randn_like(y)
    gradients = torch.autograd.grad(y, [x, weight], factors)
    for gradient, other in zip(gradients, torch.autograd.grad(expected, [x, weight], factors), strict=True):
        torch.testing.assert_close(gradient, other)


def test_the_default_network_pools_even_numbers_of_pixels() -> None:
    params = load_params(ROOT / "params.yaml").model
    model = resnet.build_model(params, [0.5] * 3, [0.25] * 3, num_classes=10).eval()
    x, sides = model.stem(torch.zeros(1, 3, 32, 32)), []
    for layer in model.layers:
        assert isinstance(layer, torch.nn.Sequential)
        sides.append(layer[0](x).shape[-1])
        x = layer(x)
    assert sides == [30, 14, 6]
