import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_resnet.models import convolution, mirrored_convolution
from cifar_resnet.training import optimizer


def all_filters(weight: Tensor, odd: Tensor) -> Tensor:
    """The reflection-equivariant filters (2 O, 2 I, K, K), by their definition."""
    first, second = (weight + odd) / 2, (weight - odd) / 2
    return torch.cat([torch.cat([first, second.flip(-1)], 1), torch.cat([second, first.flip(-1)], 1)])


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("pixels", [(6, 5), (3, 3), (1, 2)])
@pytest.mark.parametrize("images_at_a_time", [1, 4, 100])
@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_outputs_and_gradients_equal_those_of_an_ordinary_convolution_with_all_filters(
    kernel: int,
    pixels: tuple[int, int],
    images_at_a_time: int,
    amx: bool,
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conv = mirrored_convolution.MirroredConvolution(8, 12, kernel).to(dtype=dtype, memory_format=torch.channels_last)
    x = torch.rand(4, 8, *pixels, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    monkeypatch.setattr(mirrored_convolution, "MAX_FOLDED_VALUES", images_at_a_time * kernel * x[0].numel())
    for module in (convolution, mirrored_convolution):
        monkeypatch.setattr(module, "uses_amx", lambda _: amx)
    outputs = conv(x), F.conv2d(x, all_filters(conv.weight, conv.odd), padding=kernel // 2)
    torch.testing.assert_close(*outputs, rtol=tolerance, atol=tolerance)
    for y in outputs:
        assert y.is_contiguous(memory_format=torch.channels_last)
    leaves, y_gradient = (x, conv.weight, conv.odd), torch.rand_like(outputs[0])
    gradients, expected = (torch.autograd.grad(y, leaves, y_gradient) for y in outputs)
    torch.testing.assert_close(gradients, expected, rtol=tolerance, atol=tolerance)


def test_bfloat16_gradients_are_summed_over_chunks_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = mirrored_convolution.MirroredConvolution(8, 12, 3)
    x = torch.rand(200, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    exact = torch.autograd.grad(conv(x).sum(), (conv.weight, conv.odd))
    monkeypatch.setattr(mirrored_convolution, "uses_amx", lambda _: False)
    monkeypatch.setattr(mirrored_convolution, "MAX_FOLDED_VALUES", 1)
    y = conv(x.bfloat16())
    assert y.dtype == torch.bfloat16
    for gradient, expected in zip(torch.autograd.grad(y.sum(), (conv.weight, conv.odd)), exact, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0.01, atol=0.01 * float(expected.abs().max()))


@pytest.mark.parametrize(("inputs", "outputs", "folded"), [(128, 384, False), (256, 256, False), (384, 384, True)])
def test_amx_computes_small_layers_without_the_blocks(
    inputs: int, outputs: int, folded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (convolution, mirrored_convolution):
        monkeypatch.setattr(module, "uses_amx", lambda _: True)
    conv = mirrored_convolution.MirroredConvolution(inputs, outputs, 3)
    y = conv(torch.rand(1, inputs, 2, 2).contiguous(memory_format=torch.channels_last))
    assert ("FoldedConvolution" in y.grad_fn.name()) == folded


def test_the_blocks_have_the_singular_values_of_the_matrix_of_all_filters() -> None:
    conv = mirrored_convolution.MirroredConvolution(8, 16, 3)
    blocks = torch.cat([torch.linalg.svdvals(optimizer.as_matrix(block)) for block in (conv.weight, conv.odd)])
    matrix = torch.linalg.svdvals(optimizer.as_matrix(all_filters(conv.weight, conv.odd)))
    torch.testing.assert_close(matrix, blocks.sort(descending=True).values)
