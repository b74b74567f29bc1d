import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, tiny_images, tiny_params

from cifar_resnet.errors import UserError
from cifar_resnet.models import resnet
from cifar_resnet.models.convolution import Convolution
from cifar_resnet.params.file import load_params, parse_yaml, with_overrides

VALUES = load_params(ROOT / "params.yaml")
ANCESTOR = parse_yaml((ROOT / "presets/ancestor.yaml").read_text(encoding="utf-8"))


def build(**changes: object) -> resnet.ResNet:
    named = {f"model.{key}": value for key, value in changes.items()}
    return resnet.build_model(with_overrides(VALUES, ANCESTOR | named).model, [0.5] * 3, [0.25] * 3, num_classes=10)


def test_the_ancestor_has_its_published_number_of_parameters() -> None:
    assert resnet.num_parameters(build()) == 4_959_770


def test_the_params_can_express_an_efficient_resnet() -> None:
    model = build(stem_channels=64, channels=[64, 128, 256], blocks=[4, 4, 3])
    assert round(resnet.num_parameters(model) / 1e6, 2) == 4.70


def test_the_default_network_has_fewer_than_five_million_parameters() -> None:
    assert resnet.num_parameters(resnet.build_model(VALUES.model, [0.5] * 3, [0.25] * 3, num_classes=10)) == 4_002_474


def whitened(**changes: object) -> resnet.ResNet:
    torch.manual_seed(0)
    named = {f"model.{key}": value for key, value in changes.items()} | {"train.low_resolution_share": 0}
    model = resnet.build_model(with_overrides(VALUES, named).model, [0.5] * 3, [0.25] * 3, num_classes=10)
    resnet.init_whitening(model, torch.from_numpy(tiny_images(20, seed=0).pixels), 0.0)
    return model


@pytest.mark.parametrize(
    "change", [{}, {"head_pool_kernel": 1}, {"blocks": [2, 1, 1], "kernels": [5, 1, 3]}, {"head_pool": "average"}]
)
@pytest.mark.parametrize("pixels", [24, 32])
@torch.no_grad()
def test_a_mirrored_network_gives_mirrored_images_the_same_logits(change: dict[str, object], pixels: int) -> None:
    images = 255 * torch.rand(4, 3, pixels, pixels)
    for mirrored in (True, False):
        model = whitened(**({"channels": [8, 12, 16], "mirrored": mirrored} | ({} if pixels == 24 else change)))
        for training in (True, False):
            model.train(training)
            equal = torch.allclose(model(images), model(images.flip(-1)), atol=1e-5)
            assert equal == mirrored


@pytest.mark.parametrize(
    "change", [{"stem": "convolution"}, {"downsample": "stride"}, {"channels": [8, 9, 16]}, {"head_pool_kernel": 2}]
)
def test_asymmetric_networks_cannot_be_mirrored(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="mirrored"):
        whitened(mirrored=True, **change)


def test_too_many_parameters_are_an_error_that_names_the_count() -> None:
    with pytest.raises(UserError, match=r"4,959,770 parameters, model.max_parameters allows 1,000,000"):
        build(max_parameters=1_000_000)


def test_a_network_that_would_take_all_memory_is_refused_before_it_is_built() -> None:
    for change in ({"channels": [4096, 4096, 4096]}, {"kernels": [1, 1, 1], "skip_kernels": [3, 31, 31]}):
        with pytest.raises(UserError, match=r"the model has at least [\d,]+ parameters, model.max_parameters allows"):
            build(**{"max_parameters": 100_000} | change)


@pytest.mark.parametrize("downsample", ["pool", "stride"])
@pytest.mark.parametrize("mirrored", [True, False])
def test_the_lower_bound_of_parameters_is_one(downsample: str, mirrored: bool) -> None:
    if downsample == "pool" or not mirrored:
        named = {"model.downsample": downsample, "model.mirrored": mirrored, "model.blocks": [2, 1, 1]}
        params = with_overrides(VALUES, named).model
        model = resnet.build_model(params, [0.5] * 3, [0.25] * 3, num_classes=10)
        assert 0.5 * resnet.num_parameters(model) < resnet.least_parameters(params) < resnet.num_parameters(model)


def test_multiply_adds_equal_those_counted_by_hand() -> None:
    model = build(stem_channels=4, channels=[8], blocks=[1], kernels=[5], skip_kernels=[3], head_pool_kernel=32)
    stem, first, second, skip, head = 4 * 27, 8 * 4 * 25, 8 * 8 * 25, 8 * 4 * 9, 80
    assert resnet.multiply_adds(model) == 1024 * (stem + first + second + skip) + head


def test_mirrored_filters_have_half_the_parameters_and_half_the_multiply_adds() -> None:
    plain, mirrored = (whitened(mirrored=mirrored, channels=[8, 12, 16]) for mirrored in (False, True))
    for module in plain.modules():
        if isinstance(module, Convolution):
            module.even_output = False  # the pooling of a mirrored network uses all outputs
    stem, heads = 31 * 31 * 24 * 12, (160, 80)
    counts = [resnet.multiply_adds(m) - stem - head for m, head in zip((plain, mirrored), heads, strict=True)]
    assert counts[0] == 2 * counts[1]
    filters = [sum(p.numel() for p in model.layers.parameters() if p.ndim == 4) for model in (plain, mirrored)]
    assert filters[0] == 2 * filters[1]


@pytest.mark.parametrize(
    "change",
    [
        {"kernels": [5, 3, 1]},
        {"skip_kernels": [3, 3, 3]},
        {"blocks": [1, 2, 3]},
        {"channels": [8, 16, 32]},
        {"head_pool_kernel": 4},
        {"head_pool_kernel": 2},
        {"activation": "gelu"},
        {"downsample": "pool", "head_pool_kernel": 4},
        {"head_pool": "max"},
    ],
)
def test_every_hyperparameter_gives_a_network_that_classifies(change: dict[str, object]) -> None:
    small: dict[str, object] = {"channels": [8, 8, 16], "blocks": [1, 1, 1]}
    model = build(**(small | change))
    assert model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 10)


@pytest.mark.parametrize("num_classes", [2, 3, 100])
@pytest.mark.parametrize("mirrored", [True, False])
def test_a_network_has_a_logit_for_every_class(num_classes: int, mirrored: bool) -> None:
    params = tiny_params(model={"mirrored": mirrored}).model
    model = resnet.build_model(params, [0.5] * 3, [0.25] * 3, num_classes=num_classes)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, num_classes)


def test_a_network_accepts_lower_resolutions() -> None:
    model = resnet.build_model(tiny_params().model, [0.5] * 3, [0.25] * 3, num_classes=10)
    assert model(torch.rand(2, 3, 24, 24)).shape == (2, 10)


def test_whitened_patches_are_uncorrelated_with_equal_variance() -> None:
    model = whitened(mirrored=False)
    images = torch.from_numpy(tiny_images(20, seed=0).pixels)
    conv = model.stem[0]
    assert isinstance(conv, torch.nn.Conv2d)
    responses = F.conv2d((images - model.mean) / model.std, conv.weight)[:, :12].permute(1, 0, 2, 3).flatten(1)
    covariance = responses @ responses.T / responses.shape[1]
    torch.testing.assert_close(covariance, torch.eye(12), atol=0.01, rtol=0)  # float32 over 192,200 patches
    torch.testing.assert_close(conv.weight[12:], -conv.weight[:12])


def test_mirrored_whitening_filters_are_pairs_that_whiten_patches_and_their_mirror_images() -> None:
    model = whitened(mirrored=True)
    images = torch.from_numpy(tiny_images(20, seed=0).pixels)
    images = torch.cat([images, images.flip(-1)])
    conv = model.stem[0]
    assert isinstance(conv, torch.nn.Conv2d)
    responses = F.conv2d((images - model.mean) / model.std, conv.weight)
    responses = responses[:, [*range(6), *range(12, 18)]].permute(1, 0, 2, 3).flatten(1)
    covariance = responses @ responses.T / responses.shape[1]
    torch.testing.assert_close(covariance, torch.eye(12), atol=0.01, rtol=0)
    torch.testing.assert_close(conv.weight[6:12], -conv.weight[:6])
    torch.testing.assert_close(conv.weight[12:], conv.weight[:12].flip(-1))
