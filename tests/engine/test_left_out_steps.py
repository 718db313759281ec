"""A step that is left out by a flag on the device changes nothing: weights, moments, the average, the buffers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from segtrain.config.optimizer import SGD, AdamW
from segtrain.engine.average import WeightAverage
from segtrain.engine.buffers import Buffers
from segtrain.optim import build_optimizer

CONFIGS = {"sgd": SGD(name="sgd", lr=0.1, momentum=0.9), "adamw": AdamW(name="adamw", lr=0.1)}


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))


def step(optimizer: Any, model: nn.Module, *, gradient: float) -> None:
    """Make a step with one gradient everywhere, left out where it is not finite."""
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(float(not math.isfinite(gradient)))
    optimizer.step()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_first_step_left_out_leaves_no_trace_in_weights_and_moments(name: str) -> None:
    models = [small_model(), small_model()]
    optimizers = [build_optimizer(model, CONFIGS[name]) for model in models]
    step(optimizers[0], models[0], gradient=math.nan)
    for optimizer, model in zip(optimizers, models, strict=True):
        step(optimizer, model, gradient=0.5)
        step(optimizer, model, gradient=-0.25)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)
    moments = [optimizer.state_dict()["state"] for optimizer in optimizers]
    for index, values in moments[0].items():
        assert all(torch.equal(value, moments[1][index][key]) for key, value in values.items())


def test_the_average_counts_and_takes_no_step_that_is_left_out() -> None:
    model = small_model()
    average = WeightAverage(model, 0.9)
    average.update(model, leave_out=torch.tensor(False))
    before = [value.clone() for value in average.module.parameters()]
    with torch.no_grad():
        model[0].weight += 1
    average.update(model, leave_out=torch.tensor(True))
    assert all(torch.equal(one, two) for one, two in zip(before, average.module.parameters(), strict=True))
    assert int(average.num_averaged) == 1
    average.update(model, leave_out=torch.tensor(False))
    assert not torch.equal(before[0], average.module[0].weight)


def test_buffers_are_put_back_only_where_the_step_was_left_out() -> None:
    model = small_model()
    buffers = Buffers(model)
    before = buffers.copy()
    model(torch.randn(4, 1, 3, 3))
    changed = [value.clone() for value in model.buffers()]
    buffers.put_back(before, where=torch.tensor(False))
    assert all(torch.equal(one, two) for one, two in zip(changed, model.buffers(), strict=True))
    buffers.put_back(before, where=torch.tensor(True))
    assert model[1].num_batches_tracked.item() == 0
    assert torch.equal(model[1].running_var, torch.ones(2))
