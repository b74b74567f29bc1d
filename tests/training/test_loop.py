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
    model = resnet.build_model(params.model, [0.5] * 3, [0.25] * 3)
    resnet.init_whitening(model, torch.from_numpy(TRAIN.pixels))
    state = TrainState(model, params.train)
    batches = BatchLoader(TRAIN, params.train, World())
    moments = fit(state, batches, validation, params=params.train, precision=torch.float32)
    return state, [record for record in moments if isinstance(record, EpochRecord)]


def test_a_learnable_pattern_is_learned_and_recorded() -> None:
    state, history = train(epochs=6)
    assert [record.epoch for record in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1].train_loss < history[0].train_loss
    assert history[-1].validation_accuracy is not None
    assert history[-1].validation_accuracy > 0.8
    assert state.epochs_done == 6


def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_does_not() -> None:
    (first, _), (again, _), (other, _) = train(), train(), train(seed=1)
    for (name, a), b, c in zip(
        first.product.state_dict().items(),
        again.product.state_dict().values(),
        other.product.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(a, b), name
        if name.startswith("layers.") and a.ndim == 4:
            assert not torch.equal(a, c), name
    assert not torch.equal(first.product.head.weight, other.product.head.weight)


def test_training_starts_where_the_state_stands() -> None:
    params = tiny_params().train
    state, _ = train(epochs=3)
    assert (
        list(fit(state, BatchLoader(TRAIN, params, World()), VALIDATION, params=params, precision=torch.float32)) == []
    )


def test_without_a_hold_out_the_validation_columns_are_empty() -> None:
    _, history = train(validation=VALIDATION.take(np.arange(0)), epochs=1)
    assert history[0].validation_loss is None
    assert "validation_accuracy" not in history[0].metrics()


def test_a_loss_that_is_not_finite_names_epoch_and_step() -> None:
    with pytest.raises(UserError, match=r"the loss is (nan|inf) in epoch 1, step \d: lower"):
        train(optimizer="sgd", filter_lr=1e30, head_lr=1e30, bias_lr=1e30, weight_decay=0.0)


def test_no_averaging_keeps_the_last_weights() -> None:
    state, _ = train(ema_decay=0.0, epochs=1)
    for name, value in state.model.named_parameters():
        assert torch.equal(value, state.ema_model.get_parameter(name)), name


def test_sharpness_aware_steps_learn_too_and_otherwise() -> None:
    (plain, _), (aware, history) = train(epochs=4), train(epochs=4, sam_rho=0.02)
    assert history[-1].train_loss < history[0].train_loss
    assert not torch.equal(plain.product.head.weight, aware.product.head.weight)


def test_bfloat16_learns_too() -> None:
    params = tiny_params(train={"epochs": 4})
    torch.manual_seed(0)
    state = TrainState(resnet.build_model(params.model, [0.5] * 3, [0.25] * 3), params.train)
    batches = BatchLoader(TRAIN, params.train, World())
    moments = fit(state, batches, VALIDATION, params=params.train, precision=torch.bfloat16)
    history = [record for record in moments if isinstance(record, EpochRecord)]
    assert history[-1].train_loss < history[0].train_loss
