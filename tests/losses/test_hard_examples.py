"""Hard-example mining: exactly which pixels stay, and what the losses make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segtrain.losses import SegmentationLoss, build_loss
from segtrain.losses.hard_examples import HardExamples

MakeBatch = Callable[..., tuple[Tensor, Tensor]]


def mined(ohem: dict[str, Any] | None, *terms: str, **options: Any) -> SegmentationLoss:
    section = {"terms": [{"name": name} for name in terms or ("cross_entropy",)], **options}
    return build_loss(section | ({} if ohem is None else {"ohem": ohem}), num_classes=4)


def losses(probability: list[float]) -> Tensor:
    return -torch.tensor([probability], dtype=torch.float64).log()


def pixel_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of the valid pixels."""
    return F.cross_entropy(logits, target, ignore_index=255, reduction="none")[target != 255]


def kept(rule: HardExamples, scores: Tensor, valid: Tensor | None = None, labels: Tensor | None = None) -> list[int]:
    labels = torch.zeros_like(scores, dtype=torch.long) if labels is None else labels
    buckets = labels if valid is None else labels.masked_fill(~valid, 4)
    return rule(scores, buckets, num_buckets=4).flatten().nonzero().flatten().tolist()


def test_threshold_keeps_what_is_below_it() -> None:
    scores = losses([0.9, 0.2, 0.69, 0.71, 0.5])
    assert kept(HardExamples(threshold=0.7, min_kept=1), scores) == [1, 2, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pixel_at_the_threshold_is_not_below_it(dtype: torch.dtype) -> None:
    logits = torch.zeros(1, 4, 1, 3, dtype=dtype)  # p = 1/4 exactly, but for the second pixel
    logits[0, 1, 0, 1] = 1.0
    target = torch.zeros(1, 1, 3, dtype=torch.uint8)
    loss = mined({"threshold": 0.25, "min_kept": 1})
    expected = F.cross_entropy(logits[..., 1:2], target[..., 1:2].long())
    torch.testing.assert_close(loss(logits, target), expected)


def test_min_kept_pixels_stay_even_above_the_threshold() -> None:
    scores = losses([0.9, 0.95, 0.99, 0.8, 0.97])
    assert kept(HardExamples(threshold=0.7, min_kept=2), scores) == [0, 3]
    assert kept(HardExamples(threshold=0.7, min_kept=0.6), scores) == [0, 1, 3]
    assert kept(HardExamples(threshold=0.7, min_kept=50), scores) == [0, 1, 2, 3, 4]


def test_min_kept_is_a_fraction_of_the_valid_pixels() -> None:
    valid = torch.tensor([[True, True, True, True, False, False, False, False]])
    scores = losses([0.9, 0.95, 0.99, 0.8, 0.1, 0.1, 0.1, 0.1])
    assert kept(HardExamples(threshold=0.7, min_kept=0.5), scores, valid) == [0, 3]


def test_top_k_never_counts_or_keeps_ignored_pixels() -> None:
    valid = torch.tensor([[True, True, True, True, False, False, False, False]])
    scores = losses([0.9, 0.95, 0.99, 0.8, 0.1, 0.1, 0.1, 0.1])
    assert kept(HardExamples(top_k=0.5), scores, valid) == [0, 3]
    assert kept(HardExamples(top_k=1.0), scores, valid) == [0, 1, 2, 3]


def test_ties_go_to_the_first_by_position() -> None:
    scores = losses([0.9, 0.5, 0.5, 0.2, 0.5, 0.5])
    assert kept(HardExamples(top_k=0.5), scores) == [1, 2, 3]
    assert kept(HardExamples(threshold=0.1, min_kept=2), scores) == [1, 3]
    assert kept(HardExamples(top_k=0.5), torch.zeros(1, 1000)) == list(range(500))


def test_images_are_ranked_together() -> None:
    scores = torch.cat([losses([0.9, 0.8, 0.95]), losses([0.1, 0.2, 0.3])])
    assert kept(HardExamples(top_k=0.5), scores) == [3, 4, 5]


def test_with_per_class_a_common_class_cannot_fill_the_budget() -> None:
    scores = losses([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.95, 0.8, 0.9, 0.99])
    labels = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1, 3, 3]])
    assert kept(HardExamples(top_k=0.5), scores, labels=labels) == [0, 1, 2, 3, 4]
    assert kept(HardExamples(top_k=0.5, per_class=True), scores, labels=labels) == [0, 1, 2, 7, 8]
    assert kept(HardExamples(threshold=0.25, min_kept=1, per_class=True), scores, labels=labels) == [0, 1, 7, 8]


def test_at_least_one_pixel_is_kept_where_any_is_valid() -> None:
    assert kept(HardExamples(top_k=0.001), losses([0.9, 0.2])) == [1]
    assert kept(HardExamples(threshold=0.1, min_kept=0.001), losses([0.9, 0.2])) == [1]


def test_pixels_whose_probability_rounds_to_one_are_still_ranked() -> None:
    logits = torch.zeros(1, 4, 1, 3, requires_grad=True)
    target = torch.zeros(1, 1, 3, dtype=torch.int64)
    with torch.no_grad():
        logits[0, 0, 0] = torch.tensor([30.0, 25.0, 35.0])
    (grad,) = torch.autograd.grad(mined({"top_k": 0.34})(logits, target), logits)
    assert (grad[0, 0, 0] != 0).tolist() == [False, True, False]


@pytest.mark.parametrize("ohem", [{"threshold": 1.0}, {"top_k": 1.0}])
@pytest.mark.parametrize("reduction", ["valid", "weighted"])
def test_keeping_all_is_no_mining(make_batch: MakeBatch, ohem: dict[str, Any], reduction: str) -> None:
    logits, target = make_batch()
    options = {"reduction": reduction, "class_weights": {"scheme": "manual", "weights": [1.0, 2.0, 3.0, 4.0]}}
    terms = ("cross_entropy", "focal", "dice")
    torch.testing.assert_close(
        mined(ohem, *terms, **options)(logits, target), mined(None, *terms, **options)(logits, target)
    )


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_top_k_is_the_mean_of_the_largest_losses(make_batch: MakeBatch, fraction: float) -> None:
    logits, target = make_batch(images=3)
    losses = pixel_losses(logits, target)
    expected = losses.topk(round(fraction * len(losses))).values.mean()
    torch.testing.assert_close(mined({"top_k": fraction})(logits, target), expected)


@pytest.mark.parametrize("min_kept", [1, 40, 0.9])
@pytest.mark.parametrize("threshold", [0.001, 0.3, 0.7])
def test_threshold_is_the_mean_of_the_hard_ones(make_batch: MakeBatch, threshold: float, min_kept: float) -> None:
    logits, target = make_batch(images=3)
    losses = pixel_losses(logits, target)
    least = min_kept if isinstance(min_kept, int) else round(min_kept * len(losses))
    count = max(int(((-losses).exp() < threshold).sum()), least)
    loss = mined({"threshold": threshold, "min_kept": min_kept})
    torch.testing.assert_close(loss(logits, target), losses.topk(count).values.mean())


def test_pixels_are_ranked_without_their_class_weights_and_averaged_with_them(make_batch: MakeBatch) -> None:
    logits, target = make_batch(ignored=0)
    weight = torch.tensor([1.0, 20.0, 3.0, 0.1], dtype=torch.float64)
    losses = F.cross_entropy(logits, target, reduction="none").flatten()
    index = losses.topk(round(0.25 * len(losses))).indices
    weights = weight[target.flatten()[index]]
    options = {"class_weights": {"scheme": "manual", "weights": weight.tolist()}}
    weighted = mined({"top_k": 0.25}, reduction="weighted", **options)(logits, target)
    torch.testing.assert_close(weighted, (losses[index] * weights).sum() / weights.sum())
    valid = mined({"top_k": 0.25}, reduction="valid", **options)(logits, target)
    torch.testing.assert_close(valid, (losses[index] * weights).mean())


def test_mining_masks_pixel_terms_and_no_region_term(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    terms = ("cross_entropy", "focal", "dice")
    with_mining, without = mined({"top_k": 0.2}, *terms), mined(None, *terms)
    a, b = with_mining.terms(logits, target), without.terms(logits, target)
    assert torch.equal(a["dice"], b["dice"])
    assert a["cross_entropy"] > b["cross_entropy"]
    assert a["focal"] > b["focal"]


def test_dropped_pixels_get_an_exactly_zero_gradient(make_batch: MakeBatch) -> None:
    logits, target = make_batch(ignored=0)
    losses = F.cross_entropy(logits, target, reduction="none").detach()
    hard = losses >= losses.flatten().topk(21).values[-1]
    (grad,) = torch.autograd.grad(mined({"top_k": 0.25}, "cross_entropy", "focal")(logits, target), logits)
    assert torch.equal((grad != 0).any(1), hard)


def test_every_pixel_confident_is_no_nan(make_batch: MakeBatch) -> None:
    _, target = make_batch()
    logits = torch.stack([target == c for c in range(4)], dim=1) * 200.0
    assert 0 <= mined({"threshold": 0.7, "min_kept": 1})(logits.requires_grad_(), target).item() < 1e-12


@pytest.mark.parametrize("ohem", [{"threshold": 0.7}, {"threshold": 0.7, "min_kept": 10}, {"top_k": 0.3}])
def test_all_ignored_gives_zero_with_zero_gradients(make_batch: MakeBatch, ohem: dict[str, Any]) -> None:
    logits, target = make_batch(ignored=1.1)
    loss = mined(ohem, "cross_entropy", "dice")(logits, target)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, logits)[0].any()


def test_an_empty_batch_keeps_nothing() -> None:
    assert kept(HardExamples(top_k=0.5), torch.zeros(0, 4)) == []
