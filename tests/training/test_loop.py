import numpy as np
import pytest
import torch
from conftest import tiny_images, tiny_params

from cifar_resnet.data.dataset import Images
from cifar_resnet.errors import UserError
from cifar_resnet.models import resnet
from cifar_resnet.training.distributed import World
from cifar_resnet.training.history import EpochRecord
from cifar_resnet.training.loader import BatchLoader
from cifar_resnet.training.loop import TrainState, fit

TRAIN, VALIDATION = tiny_images(20, seed=0), tiny_images(4, seed=1)


def train(validation: Images = VALIDATION, **changes: object) -> tuple[TrainState, list[EpochRecord]]:
    params = tiny_params(train=changes)
    torch.manual_seed(params.train.seed)
    model = resnet.build_model(params.model, [0.5] * 3, [0.25] * 3, num_classes=10)
    resnet.init_whitening(model, torch.from_numpy(TRAIN.pixels), 5e-4)
    state = TrainState(model, params.train)
    loader = BatchLoader(TRAIN, params.train, World())
    records = fit(state, loader, validation, params=params.train, precision=torch.float32)
    return state, [record for record in records if isinstance(record, EpochRecord)]


def test_a_learnable_pattern_is_learned_and_each_epoch_is_recorded() -> None:
    state, history = train(epochs=6)
    assert [record.epoch for record in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1].train_loss < history[0].train_loss
    assert history[-1].validation_accuracy is not None
    assert history[-1].validation_accuracy > 0.8
    assert state.epochs_done == 6


def test_the_seed_determines_the_weights_bit_for_bit() -> None:
    (first, _), (again, _), (other, _) = train(), train(), train(seed=1)
    for (name, a), b, c in zip(
        first.ema_model.state_dict().items(),
        again.ema_model.state_dict().values(),
        other.ema_model.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(a, b), name
        if name.startswith("layers.") and a.ndim == 4:
            assert not torch.equal(a, c), name
    assert not torch.equal(first.ema_model.head.weight, other.ema_model.head.weight)


def test_a_finished_state_is_not_trained_further() -> None:
    params = tiny_params().train
    state, _ = train(epochs=3)
    loader = BatchLoader(TRAIN, params, World())
    assert list(fit(state, loader, VALIDATION, params=params, precision=torch.float32)) == []


def test_without_a_hold_out_the_validation_columns_are_empty() -> None:
    _, history = train(validation=VALIDATION.take(np.arange(0)), epochs=1)
    assert history[0].validation_loss is None
    assert "validation_accuracy" not in history[0].metrics()


def test_a_loss_that_is_not_finite_names_epoch_and_step() -> None:
    with pytest.raises(UserError, match=r"the loss is (nan|inf) in epoch 1, step \d: lower"):
        train(optimizer="sgd", filter_lr=1e30, head_lr=1e30, bias_lr=1e30, weight_decay=0.0)


def test_an_ema_decay_of_zero_keeps_the_last_weights() -> None:
    state, _ = train(ema_decay=0.0, epochs=1)
    for name, value in state.model.named_parameters():
        assert torch.equal(value, state.ema_model.get_parameter(name)), name


def test_sam_learns_and_gives_other_weights() -> None:
    (plain, _), (sam, history) = train(epochs=4), train(epochs=4, sam_rho=0.02)
    assert history[-1].train_loss < history[0].train_loss
    assert not torch.equal(plain.ema_model.head.weight, sam.ema_model.head.weight)


def test_training_in_bfloat16_learns() -> None:
    params = tiny_params(train={"epochs": 4})
    torch.manual_seed(0)
    state = TrainState(resnet.build_model(params.model, [0.5] * 3, [0.25] * 3, num_classes=10), params.train)
    loader = BatchLoader(TRAIN, params.train, World())
    records = fit(state, loader, VALIDATION, params=params.train, precision=torch.bfloat16)
    history = [record for record in records if isinstance(record, EpochRecord)]
    assert history[-1].train_loss < history[0].train_loss
