"""Statistics add up: over ranks by `reduce`, over the rest of a window by `rest`, whatever the terms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from segtrain.losses import SegmentationLoss, build_loss

MakeBatch = Callable[..., tuple[Tensor, Tensor]]
CUTS = [1, 2, 3]
REGION = [
    {"name": name, "per": per}
    for name in ("dice", "jaccard", "tversky", "focal_tversky", "generalized_dice")
    for per in ("batch", "image")
]


def loss_of(activation: str = "softmax", **options: Any) -> SegmentationLoss:
    """Every term that goes with the activation, with class weights where they can be had."""
    pixel: list[dict[str, Any]] = [{"name": "cross_entropy"}, {"name": "focal", "gamma": [0.0, 0.5, 1.0, 2.0]}]
    if activation == "sigmoid":
        pixel += [{"name": "balanced_cross_entropy", "per": per} for per in ("batch", "image")]
    else:
        pixel[0]["label_smoothing"] = 0.1
    region = [*REGION, {"name": "dice", "squared": True, "class_weights": True}]
    section = {"activation": activation, "terms": pixel + region, **options}
    section["class_weights"] = {"scheme": "manual", "weights": [1.0, 2.0, 0.25, 8.0]}
    return build_loss(section, num_classes=4)


@pytest.fixture
def window(make_batch: MakeBatch) -> tuple[Tensor, Tensor]:
    """Six images with very unequal numbers of ignored pixels; one all ignored, one without a class."""
    logits, target = make_batch(images=6, ignored=0.1)
    target[0, 1:] = 255
    target[2] = 255
    target[4][target[4] == 3] = 0
    return logits, target


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("reduction", ["valid", "weighted"])
def test_a_batch_is_the_sum_of_its_shards(window: tuple[Tensor, Tensor], activation: str, reduction: str) -> None:
    logits, target = window
    loss = loss_of(activation, reduction=reduction)
    whole = loss.statistics(logits, target)
    assert whole.dtype == torch.float64
    assert whole.dim() == 1
    assert whole.numel() < 200  # small enough to send
    parts = [loss.statistics(z, t) for z, t in zip(logits.split(CUTS), target.split(CUTS), strict=True)]
    torch.testing.assert_close(torch.stack(parts).sum(0), whole, rtol=1e-12, atol=1e-14)
    values = loss.value(whole)
    expected = loss.terms(logits, target)
    assert list(values) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(values[name], value, rtol=1e-14, atol=0)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_rest_of_the_window_makes_every_term_exact(window: tuple[Tensor, Tensor], activation: str) -> None:
    logits, target = window
    loss = loss_of(activation)
    assert loss.inexact_with_rest is None
    whole = loss(logits, target)
    (expected,) = torch.autograd.grad(whole, logits)
    batches = list(zip(logits.split(CUTS), target.split(CUTS), strict=True))
    with torch.no_grad():
        statistics = [loss.statistics(*batch) for batch in batches]
    parts = []
    for index, batch in enumerate(batches):
        rest = torch.stack([part for other, part in enumerate(statistics) if other != index]).sum(0)
        parts.append(loss(*batch, rest=rest))
        torch.testing.assert_close(parts[-1], whole, rtol=1e-12, atol=0)
    (summed,) = torch.autograd.grad(torch.stack(parts).sum(), logits)
    torch.testing.assert_close(summed, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("accumulate", [False, True])
def test_ranks_that_sum_their_statistics_have_the_gradient_of_one_batch(
    window: tuple[Tensor, Tensor], accumulate: bool
) -> None:
    """Two ranks in one process: the sum over ranks adds the other's statistics, its backward the other's gradient."""
    logits, target = window
    section = {"terms": [{"name": "cross_entropy"}, {"name": "dice", "per": "image" if accumulate else "batch"}]}
    loss = build_loss(section, num_classes=4)
    ranks = [(logits[:2], target[:2]), (logits[2:], target[2:])]
    (expected,) = torch.autograd.grad(loss(logits, target), logits)
    if not accumulate:
        statistics = sum(loss.statistics(*rank) for rank in ranks)  # what the all-reduce gives every rank
        losses = [loss(*rank, reduce=lambda _, s=statistics: s) for rank in ranks]  # type: ignore[misc]
        torch.testing.assert_close(losses[0], loss(logits, target), rtol=1e-12, atol=0)
        # each rank's loss sends its gradient to all ranks, and DDP takes the mean
        (mean,) = torch.autograd.grad(torch.stack(losses).mean(), logits)
        torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-15)
        return
    counts = [loss.normalizer([rank[1]]) for rank in ranks]
    flat: list[Tensor] = []
    for count in counts:
        count.reduced(lambda values: flat.append(values) or values)  # type: ignore[func-returns-value]
    both = [count.reduced(lambda _: torch.stack(flat).sum(0)) for count in counts]
    parts = [loss(*rank, normalizer=count) for rank, count in zip(ranks, both, strict=True)]
    (summed,) = torch.autograd.grad(torch.stack(parts).sum(), logits)
    torch.testing.assert_close(summed, expected, rtol=1e-10, atol=1e-15)


def test_reduce_is_called_once_for_all_terms(window: tuple[Tensor, Tensor]) -> None:
    calls: list[Tensor] = []
    value = loss_of()(*window, reduce=lambda values: calls.append(values) or values)  # type: ignore[func-returns-value]
    assert len(calls) == 1
    assert calls[0].requires_grad
    assert torch.equal(value, loss_of()(*window))


def test_mining_stays_inexact_and_says_so() -> None:
    section = {"terms": [{"name": "focal"}, {"name": "dice"}], "ohem": {"top_k": 0.5}}
    loss = build_loss(section, num_classes=4)
    assert loss.inexact_with_rest == "focal: hard examples are ranked within each micro-batch"
    assert loss.inexact_under_accumulation is not None
    assert "dice: overlaps are taken within each micro-batch" in loss.inexact_under_accumulation


def test_a_normalizer_and_a_rest_together_are_refused(window: tuple[Tensor, Tensor]) -> None:
    loss = loss_of()
    with pytest.raises(ValueError, match="not both"):
        loss(*window, normalizer=loss.normalizer([window[1]]), rest=loss.statistics(*window).detach())


def test_the_loss_compiles_as_one_graph(make_batch: MakeBatch) -> None:
    logits, target = make_batch(dtype=torch.float32)
    section = {"terms": [{"name": "cross_entropy"}, {"name": "focal"}, {"name": "dice"}], "ohem": {"threshold": 0.7}}
    loss = build_loss(section, num_classes=4)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    value, expected = compiled(logits, target), loss(logits, target)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, logits)[0], torch.autograd.grad(expected, logits)[0])
