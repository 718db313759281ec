"""Parameter groups and the schedule of the learning rate."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn

from segtrain.config.optimizer import SGD, AdamW, ConstantSchedule, CosineSchedule, PolySchedule, ScheduleConfig
from segtrain.errors import CheckpointError, ConfigError
from segtrain.optim import build_optimizer, check_schedule, lr_factor, restore_optimizer, set_learning_rate

SCHEDULES = [
    PolySchedule(name="poly", min_factor=0.1, warmup_steps=3),
    CosineSchedule(name="cosine", min_factor=0.1, warmup_steps=3),
    ConstantSchedule(name="constant", warmup_steps=3),
]


class Parts(nn.Module):
    """A model with an encoder, as optim expects it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.decoder = nn.Conv2d(4, 2, 1)

    def encoder_parameters(self) -> list[nn.Parameter]:
        return list(self.encoder.parameters())


def names_by_group(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["name"]: {names[id(value)] for value in group["params"]} for group in optimizer.param_groups}


def test_biases_and_norms_get_no_decay_and_the_encoder_its_own_lr() -> None:
    model = Parts()
    optimizer = build_optimizer(model, AdamW(name="adamw", lr=1e-3, encoder_lr=1e-4, weight_decay=0.05))
    assert names_by_group(model, optimizer) == {
        "encoder/decay": {"encoder.0.weight"},
        "encoder/no_decay": {"encoder.0.bias", "encoder.1.weight", "encoder.1.bias"},
        "decoder/decay": {"decoder.weight"},
        "decoder/no_decay": {"decoder.bias"},
    }
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 1e-4, 1e-3, 1e-3]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0, 0.05, 0]


def test_decay_norm_and_bias_decays_everything() -> None:
    model = Parts()
    optimizer = build_optimizer(model, SGD(name="sgd", lr=0.1, weight_decay=0.05, decay_norm_and_bias=True))
    assert set(names_by_group(model, optimizer)) == {"encoder/decay", "decoder/decay"}
    assert all(group["weight_decay"] == 0.05 and group["lr"] == 0.1 for group in optimizer.param_groups)


def test_frozen_parameters_are_left_out() -> None:
    model = Parts()
    model.encoder.requires_grad_(False)
    optimizer = build_optimizer(model, AdamW(name="adamw", lr=1e-3))
    assert names_by_group(model, optimizer) == {
        "decoder/decay": {"decoder.weight"},
        "decoder/no_decay": {"decoder.bias"},
    }


def test_a_model_of_another_kind_is_all_decoder() -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), AdamW(name="adamw", lr=1e-3))
    assert [group["name"] for group in optimizer.param_groups] == ["decoder/decay", "decoder/no_decay"]


def test_settings_of_the_optimizers_arrive() -> None:
    adamw = build_optimizer(Parts(), AdamW(name="adamw", lr=1e-3, betas=(0.8, 0.95)))
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["betas"] == (0.8, 0.95)
    sgd = build_optimizer(Parts(), SGD(name="sgd", lr=0.1, momentum=0.7, nesterov=True))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["nesterov"]) == (0.7, True)


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no parameter is left to train"):
        build_optimizer(Parts().requires_grad_(False), AdamW(name="adamw", lr=1e-3))


def test_an_encoder_lr_without_a_trained_encoder_is_an_error() -> None:
    model = Parts()
    model.encoder.requires_grad_(False)
    with pytest.raises(ConfigError, match="encoder_lr"):
        build_optimizer(model, AdamW(name="adamw", lr=1e-3, encoder_lr=1e-4))


def test_nesterov_without_momentum_is_an_error() -> None:
    with pytest.raises(ConfigError, match="nesterov"):
        build_optimizer(Parts(), SGD(name="sgd", lr=0.1, momentum=0.0, nesterov=True))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
def test_warm_up_is_linear_and_reaches_one(schedule: ScheduleConfig) -> None:
    assert [lr_factor(schedule, step, 20) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=lambda schedule: schedule.name)
def test_factor_falls_to_the_minimum_and_stays_there(schedule: ScheduleConfig) -> None:
    factors = [lr_factor(schedule, step, 20) for step in range(3, 30)]
    assert factors == sorted(factors, reverse=True)
    assert factors[17:] == pytest.approx([0.1] * 10)
    assert min(factors) >= 0.1 - 1e-12


def test_shapes_of_the_schedules() -> None:
    poly = PolySchedule(name="poly", power=0.9)
    cosine = CosineSchedule(name="cosine", min_factor=0.2)
    constant = ConstantSchedule(name="constant")
    for step in range(10):
        assert lr_factor(poly, step, 10) == pytest.approx((1 - step / 10) ** 0.9)
        assert lr_factor(cosine, step, 10) == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi * step / 10)))
        assert lr_factor(constant, step, 10) == 1.0
    assert lr_factor(poly, 10, 10) == lr_factor(poly, 99, 10) == 0.0


def test_the_schedule_sets_the_lr_of_every_group() -> None:
    schedule = PolySchedule(name="poly", power=1.0, warmup_steps=1)
    optimizer = build_optimizer(Parts(), SGD(name="sgd", lr=1.0, encoder_lr=0.1))
    seen = []
    for step in range(5):
        set_learning_rate(optimizer, schedule, step=step, total_steps=5)
        seen.append((optimizer.param_groups[-1]["lr"], optimizer.param_groups[0]["lr"]))
    assert [lr for lr, _ in seen] == pytest.approx([0.5, 1.0, 0.75, 0.5, 0.25])
    assert [lr for _, lr in seen] == pytest.approx([0.05, 0.1, 0.075, 0.05, 0.025])


def test_a_restored_optimizer_keeps_its_moments_and_takes_the_settings_given_now() -> None:
    model = Parts()
    optimizer = build_optimizer(model, AdamW(name="adamw", lr=1.0))
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = build_optimizer(Parts(), AdamW(name="adamw", lr=0.5, weight_decay=0.2))
    restore_optimizer(again, torch.load(file, weights_only=True))
    assert again.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys() != set()
    assert again.param_groups[0]["initial_lr"] == 0.5
    assert again.param_groups[0]["weight_decay"] == 0.2


def test_an_optimizer_of_other_groups_is_refused() -> None:
    state = build_optimizer(Parts(), AdamW(name="adamw", lr=1.0)).state_dict()
    other = build_optimizer(torch.nn.Linear(2, 2), AdamW(name="adamw", lr=1.0))
    with pytest.raises(CheckpointError, match="parameter groups"):
        restore_optimizer(other, state)


def test_a_warm_up_as_long_as_the_training_is_an_error() -> None:
    with pytest.raises(ConfigError, match="warmup_steps is 5 and the training has 5 steps"):
        check_schedule(PolySchedule(name="poly", warmup_steps=5), 5)
