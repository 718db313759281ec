"""Steps, epochs and evaluations map onto each other exactly; averages are averages."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from segtrain.engine.average import WeightAverage
from segtrain.engine.state import Schedule, TrainState, rng_state, set_rng_state


def schedule(
    *, batches: int = 10, accumulate: int = 1, total: int = 30, every: int = 1, unit: str = "epochs"
) -> Schedule:
    return Schedule(batches, accumulate, total, every, unit)


def test_evaluations_fall_on_the_ends_of_epochs_and_on_the_last_step() -> None:
    due = [step for step in range(36) if schedule(total=35).evaluation_due(step)]
    assert due == [10, 20, 30, 35]


def test_evaluations_in_steps() -> None:
    due = [step for step in range(21) if schedule(total=20, every=8, unit="steps").evaluation_due(step)]
    assert due == [8, 16, 20]


@pytest.mark.parametrize("accumulate", [2, 3, 7, 25])
def test_each_epoch_is_evaluated_once_when_windows_straddle_epochs(accumulate: int) -> None:
    plan = schedule(accumulate=accumulate, total=100)
    due = [step for step in range(1, 100) if plan.evaluation_due(step)]
    epochs = [plan.position(step)[0] for step in due]
    assert len(set(epochs)) == len(epochs)
    assert all(later > earlier for earlier, later in itertools.pairwise(epochs))


def test_the_position_counts_the_batches_of_all_accumulated_steps() -> None:
    assert schedule(accumulate=3).position(7) == (2, 1)


def test_state_survives_a_round_trip() -> None:
    state = TrainState(step=3, best_value=0.5, best_iou={"crack": 0.25}, warned=["pit"])
    assert TrainState.from_dict(state.to_dict()) == state
    assert math.isnan(TrainState.from_dict(TrainState().to_dict()).best_value)


def test_the_average_covers_batchnorm_statistics_and_starts_near_the_current_weights() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    ema = WeightAverage(model, 0.999)
    kept = torch.tensor(False)
    ema.update(model, leave_out=kept)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[1].running_mean.fill_(10.0)
        model[1].num_batches_tracked.fill_(7)
    start = ema.module[1].running_mean.item()
    ema.update(model, leave_out=kept)
    # second update: decay min(0.999, 2 / 11)
    assert ema.module[1].running_mean.item() == pytest.approx(start + (10.0 - start) * (1 - 2 / 11))
    assert ema.module[1].num_batches_tracked.item() == 7


def test_random_numbers_go_on_where_they_were() -> None:
    device = torch.device("cpu")
    state = rng_state(device)
    first = torch.rand(3)
    set_rng_state(state, device)
    assert torch.equal(torch.rand(3), first)
