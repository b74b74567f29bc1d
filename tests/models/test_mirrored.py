import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_resnet.models import mirrored
from cifar_resnet.training import optimizer


def all_filters(weight: Tensor, odd: Tensor) -> Tensor:
    """(2 O, 2 I, K, K), as their definition has them."""
    same, other = (weight + odd) / 2, (weight - odd) / 2
    return torch.cat([torch.cat([same, other.flip(-1)], 1), torch.cat([other, same.flip(-1)], 1)])


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("pixels", [(6, 5), (3, 3), (1, 2)])
@pytest.mark.parametrize("images_at_a_time", [1, 4, 100])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_results_and_gradients_are_those_of_the_whole_filters(
    kernel: int,
    pixels: tuple[int, int],
    images_at_a_time: int,
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conv = mirrored.MirroredConvolution(8, 12, kernel).to(dtype=dtype, memory_format=torch.channels_last)
    x = torch.rand(4, 8, *pixels, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    monkeypatch.setattr(mirrored, "FOLDED", images_at_a_time * kernel * x[0].numel())
    found, expected = conv(x), F.conv2d(x, all_filters(conv.weight, conv.odd), padding=kernel // 2)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    for y in (found, expected):
        assert y.is_contiguous(memory_format=torch.channels_last)
    of, gradient = (x, conv.weight, conv.odd), torch.rand_like(found)
    for mine, theirs in zip(*(torch.autograd.grad(y, of, gradient) for y in (found, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def test_bfloat16_sums_its_gradient_over_the_parts_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = mirrored.MirroredConvolution(8, 12, 3)
    x = torch.rand(200, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    exact = torch.autograd.grad(conv(x).sum(), (conv.weight, conv.odd))
    monkeypatch.setattr(mirrored, "FOLDED", 1)
    y = conv(x.bfloat16())
    assert y.dtype == torch.bfloat16
    for mine, theirs in zip(torch.autograd.grad(y.sum(), (conv.weight, conv.odd)), exact, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.01, atol=0.01 * float(theirs.abs().max()))


def test_what_muon_learns_are_the_blocks_of_the_whole_matrix() -> None:
    conv = mirrored.MirroredConvolution(8, 16, 3)
    blocks = torch.cat([torch.linalg.svdvals(optimizer.as_matrix(block)) for block in (conv.weight, conv.odd)])
    whole = torch.linalg.svdvals(optimizer.as_matrix(all_filters(conv.weight, conv.odd)))
    torch.testing.assert_close(whole, blocks.sort(descending=True).values)
