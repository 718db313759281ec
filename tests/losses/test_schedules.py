"""Weights that follow the epoch, and class weights that wait for theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from segtrain.config.loss_terms import WeightSchedule
from segtrain.errors import ConfigError
from segtrain.losses import build_loss
from segtrain.losses.schedules import weight_at

MakeBatch = Callable[..., tuple[Tensor, Tensor]]


@pytest.mark.parametrize(
    ("epoch", "weight"), [(0, 0.2), (1.99, 0.2), (2, 0.2), (3, 0.5), (3.5, 0.65), (4, 0.8), (4.01, 0.8), (99, 0.8)]
)
def test_a_ramp_is_straight_between_its_epochs_and_flat_outside(epoch: float, weight: float) -> None:
    ramp = WeightSchedule(start=0.2, end=0.8, start_epoch=2.0, end_epoch=4.0)
    assert weight_at(ramp, epoch) == pytest.approx(weight)


def test_without_an_end_epoch_the_weight_steps() -> None:
    step = WeightSchedule(start=1.0, end=0.25, start_epoch=2.5)
    assert [weight_at(step, epoch) for epoch in (0.0, 2.49, 2.5, 10.0)] == [1.0, 1.0, 0.25, 0.25]


def test_the_total_follows_the_schedule_and_the_terms_do_not(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    ramp = {"start": 0.0, "end": 2.0, "start_epoch": 1.0, "end_epoch": 3.0}
    loss = build_loss({"terms": [{"name": "cross_entropy"}, {"name": "dice", "weight": ramp}]}, num_classes=4)
    first = loss.terms(logits, target)
    assert torch.equal(first["total"], first["cross_entropy"])  # epoch 0 until told
    for epoch, weight in ((2.0, 1.0), (0.5, 0.0), (3.0, 2.0)):  # any order: a function of the epoch alone
        loss.set_progress(7, epoch)
        values = loss.terms(logits, target)
        assert torch.equal(values["dice"], first["dice"])
        torch.testing.assert_close(values["total"], values["cross_entropy"] + weight * values["dice"])
    assert "0 → 2 over epochs 1 to 3 × dice" in loss.describe()


@pytest.mark.parametrize("reduction", ["valid", "weighted"])
def test_deferred_class_weights_are_all_one_before_their_epoch(make_batch: MakeBatch, reduction: str) -> None:
    logits, target = make_batch()
    weights: dict[str, Any] = {"scheme": "manual", "weights": [1.0, 2.0, 3.0, 4.0]}
    terms = [{"name": "cross_entropy"}, {"name": "dice", "class_weights": True}]
    options = {"reduction": reduction}
    at_once = build_loss({"terms": terms, "class_weights": weights, **options}, num_classes=4)
    later = build_loss({"terms": terms, "class_weights": {**weights, "start_epoch": 2.0}, **options}, num_classes=4)
    plain = build_loss({"terms": [{"name": "cross_entropy"}, {"name": "dice"}]}, num_classes=4)
    for epoch, expected in ((0.0, plain), (1.99, plain), (2.0, at_once), (5.0, at_once)):
        later.set_progress(0, epoch)
        torch.testing.assert_close(later(logits, target), expected(logits, target), rtol=1e-14, atol=0)
    assert "class weights: manual from epoch 2 on (all 1 before)" in later.describe()


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ({"start": 1.0, "end": 1.0, "end_epoch": 3.0}, "start and end are both 1, .* write weight: 1"),
        ({"start": 0.0, "end": 1.0}, "a step at epoch 0 is no schedule"),
        ({"start_epoch": 4.0, "end_epoch": 4.0}, "end_epoch 4 must come after start_epoch 4"),
        ({"start": -1.0, "start_epoch": 1.0}, "expected a number of at least 0"),
    ],
)
def test_a_schedule_that_changes_nothing_is_refused(schedule: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_loss({"terms": [{"name": "dice", "weight": schedule}]}, num_classes=4)


def test_weights_cannot_be_deferred_where_there_are_none() -> None:
    section = {"terms": [{"name": "dice"}], "class_weights": {"scheme": "none", "start_epoch": 2.0}}
    with pytest.raises(ConfigError, match="scheme: none has none"):
        build_loss(section, num_classes=4)
