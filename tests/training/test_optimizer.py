import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_params

from cifar_resnet.models import resnet
from cifar_resnet.training import optimizer

PARAMS = tiny_params()


@pytest.mark.parametrize("momenta", [{}, {"momentum": 0.0}, {"filter_momentum": 0.0}])
@pytest.mark.parametrize("name", ["muon", "sgd"])
def test_a_step_changes_exactly_the_trained_parameters(name: str, momenta: dict[str, float]) -> None:
    torch.manual_seed(0)
    model = resnet.build_model(PARAMS.model, [0.5] * 3, [0.25] * 3, num_classes=10)
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizers = optimizer.build_optimizers(model, tiny_params(train={"optimizer": name, **momenta}).train)
    model(torch.rand(8, 3, 32, 32) * 255).logsumexp(1).sum().backward()
    for optimizer_ in optimizers:
        optimizer_.step()
        optimizer_.zero_grad()
    for key, value in model.named_parameters():
        assert torch.equal(value, before[key]) != value.requires_grad, key
        assert value.grad is None or not value.grad.any(), key


@pytest.mark.parametrize(("inputs", "outputs"), [(8, 16), (2, 32)])  # wide and tall as a matrix
def test_muon_on_filters_equals_torch_muon_on_matrices(inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    conv = resnet.make_convolution(inputs, outputs, 3, mirrored=False).to(memory_format=torch.channels_last)
    muon = optimizer.Muon([conv.weight], lr=0.1, momentum=0.6, precision=torch.bfloat16)
    matrix = torch.nn.Parameter(optimizer.as_matrix(conv.weight.detach()).clone())
    reference = torch.optim.Muon([matrix], lr=0.1, momentum=0.6, weight_decay=0.0, ns_steps=3)
    for _ in range(3):
        conv.weight.grad = torch.randn_like(conv.weight)
        matrix.grad = optimizer.as_matrix(conv.weight.grad).clone()
        muon.step()
        reference.step()
        optimizer.normalize(matrix.detach())
        torch.testing.assert_close(optimizer.as_matrix(conv.weight), matrix, rtol=0, atol=0)


def test_muon_works_in_place_and_keeps_the_norm() -> None:
    conv = resnet.make_convolution(8, 16, 3, mirrored=False).to(memory_format=torch.channels_last)
    address = conv.weight.data_ptr()
    muon = optimizer.Muon([conv.weight], lr=0.1, momentum=0.6, precision=torch.float32)
    conv(torch.rand(2, 8, 8, 8)).square().sum().backward()
    muon.step()
    assert conv.weight.data_ptr() == address
    assert conv.weight.norm().item() == pytest.approx(4, rel=1e-5)


def test_orthogonalize_keeps_the_requested_dtype_and_brings_singular_values_near_one() -> None:
    matrix = optimizer.orthogonalize(torch.randn(16, 72), torch.float32)
    assert matrix.dtype == torch.float32
    singular_values = torch.linalg.svdvals(matrix)
    assert 0.3 < singular_values.min() < singular_values.max() < 1.3  # three steps need not reach 1


def test_sam_perturbation_raises_the_loss_and_is_undone() -> None:
    torch.manual_seed(0)
    model = resnet.build_model(PARAMS.model, [0.5] * 3, [0.25] * 3, num_classes=10)
    images, labels = torch.rand(8, 3, 32, 32) * 255, torch.arange(8)
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with optimizer.sam_perturbation(model, 0.01):
        assert F.cross_entropy(model(images), labels) > loss
        for name, value in model.named_parameters():
            distance = float((value.detach() - before[name]).norm())
            radius = 0.01 if value.requires_grad and value.ndim == 4 else 0
            assert distance == pytest.approx(radius * float(before[name].norm()), rel=1e-3), name
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
