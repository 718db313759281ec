"""Accumulation: micro-batches with the window's normalizer add up to the gradient of one large batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from segtrain.losses import SegmentationLoss, build_loss

MakeBatch = Callable[..., tuple[Tensor, Tensor]]
CUTS = [1, 2, 3]  # images in each micro-batch


def loss_of(*terms: dict[str, Any], **options: Any) -> SegmentationLoss:
    weights = {"scheme": "manual", "weights": [1.0, 2.0, 0.25, 8.0]}
    return build_loss({"terms": list(terms), "class_weights": weights, **options}, num_classes=4)


def window(make_batch: MakeBatch) -> tuple[Tensor, Tensor]:
    """Six images with very unequal numbers of ignored pixels; one all ignored."""
    logits, target = make_batch(images=6, ignored=0.1)
    target[0, 1:] = 255
    target[2] = 255
    target[4][target[4] == 3] = 0
    return logits, target


def gradients(loss: SegmentationLoss, logits: Tensor, target: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The gradient of the whole window, and the sum of those of its micro-batches."""
    (whole,) = torch.autograd.grad(loss(logits, target, **options), logits)
    targets = target.split(CUTS)
    weights = options["pixel_weight"].split(CUTS) if options else [None] * len(CUTS)
    normalizer = loss.normalizer(targets, pixel_weights=weights if options else None)
    parts = [
        loss(z, t, pixel_weight=w, normalizer=normalizer)
        for z, t, w in zip(logits.split(CUTS), targets, weights, strict=True)
    ]
    (summed,) = torch.autograd.grad(torch.stack(parts).sum(), logits)
    return whole, summed


EXACT = [
    {"name": "cross_entropy"},
    {"name": "focal", "gamma": 0.5},
    {"name": "dice", "per": "image"},
    {"name": "dice", "per": "image", "class_weights": True},
    {"name": "dice", "per": "image", "absent_classes": "count"},
    {"name": "dice", "per": "image", "squared": True, "smooth": 1.0},
]


@pytest.mark.parametrize("reduction", ["valid", "weighted"])
@pytest.mark.parametrize("term", EXACT)
def test_summed_micro_batches_equal_the_whole_window(
    make_batch: MakeBatch, term: dict[str, Any], reduction: str
) -> None:
    logits, target = window(make_batch)
    loss = loss_of({"name": "cross_entropy", "weight": 0.3}, term, reduction=reduction)
    assert loss.inexact_under_accumulation is None
    whole, summed = gradients(loss, logits, target)
    torch.testing.assert_close(summed, whole, rtol=1e-12, atol=1e-15)
    weight = torch.rand(target.shape, generator=torch.Generator().manual_seed(1))
    whole, summed = gradients(loss, logits, target, pixel_weight=weight)
    torch.testing.assert_close(summed, whole, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("reduction", ["valid", "weighted"])
def test_without_a_normalizer_micro_batches_would_not_add_up(make_batch: MakeBatch, reduction: str) -> None:
    logits, target = window(make_batch)
    loss = loss_of({"name": "cross_entropy"}, reduction=reduction)
    (whole,) = torch.autograd.grad(loss(logits, target), logits)
    parts = [loss(z, t) / len(CUTS) for z, t in zip(logits.split(CUTS), target.split(CUTS), strict=True)]
    (summed,) = torch.autograd.grad(torch.stack(parts).sum(), logits)
    assert (summed - whole).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("terms", "options", "reason"),
    [
        ([{"name": "dice", "label": "overlap"}], {}, "overlap: overlaps are taken within each micro-batch"),
        ([{"name": "focal"}], {"ohem": {"top_k": 0.5}}, "hard examples are ranked within each micro-batch"),
    ],
)
def test_inexact_terms_say_so_and_are_the_mean_of_the_micro_batches(
    make_batch: MakeBatch, terms: list[dict[str, Any]], options: dict[str, Any], reason: str
) -> None:
    logits, target = window(make_batch)
    loss = loss_of({"name": "cross_entropy", "weight": 0.0}, *terms, **options)
    assert reason in (loss.inexact_under_accumulation or "")
    normalizer = loss.normalizer(target.split(CUTS))
    for z, t in zip(logits.split(CUTS), target.split(CUTS), strict=True):
        torch.testing.assert_close(loss(z, t, normalizer=normalizer), loss(z, t) / len(CUTS))


def test_a_window_of_ignored_pixels_gives_zero(make_batch: MakeBatch) -> None:
    logits, target = make_batch(ignored=1.1)
    loss = loss_of({"name": "cross_entropy"}, {"name": "dice", "per": "image"})
    whole, summed = gradients_of_one(loss, logits, target)
    assert whole.item() == 0
    assert not summed.any()


def gradients_of_one(loss: SegmentationLoss, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    value = loss(logits, target, normalizer=loss.normalizer([target]))
    return value, torch.autograd.grad(value, logits)[0]


def test_weights_that_do_not_go_with_the_targets_are_refused() -> None:
    target = torch.zeros(1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="found 0 pixel_weights for 1 targets"):
        build_loss({"terms": [{"name": "focal"}]}, num_classes=2).normalizer([target], pixel_weights=[])


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one target"):
        loss_of({"name": "cross_entropy"}).normalizer([])
