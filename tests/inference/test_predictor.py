import numpy as np
import pytest
import torch
from conftest import tiny_images, tiny_params

from cifar_resnet.inference import predictor
from cifar_resnet.models import resnet

PIXELS = tiny_images(2, seed=0).pixels


def model(*, mirrored: bool = True) -> resnet.ResNet:
    torch.manual_seed(0)
    net = resnet.build_model(tiny_params(model={"mirrored": mirrored}).model, [0.5] * 3, [0.25] * 3, num_classes=10)
    resnet.init_whitening(net, torch.from_numpy(PIXELS), 5e-4)
    return net


def test_the_batch_size_does_not_change_the_logits() -> None:
    several_batches, one_batch = (
        predictor.predict_logits(model(), PIXELS, batch_size=size, precision=torch.float32) for size in (3, 20)
    )
    torch.testing.assert_close(several_batches, one_batch, atol=1e-5, rtol=1e-5)  # the order of the sums differs


@pytest.mark.parametrize("mirrored", [True, False])
def test_augmented_logits_weigh_six_views(mirrored: bool) -> None:
    net = model(mirrored=mirrored).eval()
    padded = np.pad(PIXELS, ((0, 0), (0, 0), (1, 1), (1, 1)), "reflect")
    expected = torch.zeros(len(PIXELS), 10)
    for offset, weight in ((1, 0.25), (0, 0.125), (2, 0.125)):
        view = np.ascontiguousarray(padded[:, :, offset : offset + 32, offset : offset + 32])
        for side in (view, np.ascontiguousarray(view[..., ::-1])):
            expected += weight * predictor.predict_logits(net, side, batch_size=20, precision=torch.float32)
    logits = predictor.predict_logits(net, PIXELS, batch_size=20, precision=torch.float32, augmented=True)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_without_mirror_views_a_prediction_has_three_views() -> None:
    net = model(mirrored=False).eval()
    net.mirror_views = False
    padded = np.pad(PIXELS, ((0, 0), (0, 0), (1, 1), (1, 1)), "reflect")
    expected = torch.zeros(len(PIXELS), 10)
    for offset, weight in ((1, 0.5), (0, 0.25), (2, 0.25)):
        view = np.ascontiguousarray(padded[:, :, offset : offset + 32, offset : offset + 32])
        expected += weight * predictor.predict_logits(net, view, batch_size=20, precision=torch.float32)
    logits = predictor.predict_logits(net, PIXELS, batch_size=20, precision=torch.float32, augmented=True)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_no_images_give_no_logits() -> None:
    assert predictor.predict_logits(model(), PIXELS[:0], batch_size=4, precision=torch.float32).shape == (0, 10)
