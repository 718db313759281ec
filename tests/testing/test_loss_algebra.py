"""Losses that are one another in special cases, through the configuration and with their gradients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segtrain.losses import SegmentationLoss, build_loss

NUM_CLASSES = 4
COUNTS = np.array([9000, 900, 90, 10], np.int64)
CE, FOCAL = {"name": "cross_entropy"}, {"name": "focal"}


def frequencies(counts: Any = COUNTS) -> SimpleNamespace:
    return SimpleNamespace(pixels=np.asarray(counts), images=np.full(len(counts), 10), image_pixels=np.asarray(counts))


def batch(seed: int = 0, *, absent: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits and labels with a fifth of the pixels ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, NUM_CLASSES, 7, 8, generator=generator, dtype=torch.float64)
    target = torch.randint(0, NUM_CLASSES, (3, 7, 8), generator=generator)
    if absent is not None:
        target[target == absent] = 0
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    return logits, target


def loss_of(*terms: dict[str, Any], counts: Any = COUNTS, **shared: Any) -> SegmentationLoss:
    return build_loss({"terms": list(terms), **shared}, num_classes=NUM_CLASSES, frequencies=frequencies(counts))


def with_gradient(loss: Any, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().requires_grad_()
    value = loss(leaf, target)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def assert_one(first: Any, second: Any, logits: Tensor, target: Tensor) -> None:
    for a, b in zip(with_gradient(first, logits, target), with_gradient(second, logits, target), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_tversky_is_salehis_formula_with_alpha_for_false_positives() -> None:
    logits, target = batch()
    valid = (target != 255)[:, None]
    label = F.one_hot(target.masked_fill(target == 255, 0), NUM_CLASSES).movedim(-1, 1) * valid

    def direct(scores: Tensor, _: Tensor) -> Tensor:
        p = scores.softmax(1) * valid
        hit, false, missed = ((x * valid).sum((0, 2, 3)) for x in (p * label, p * (1 - label) * valid, (1 - p) * label))
        return (1 - hit / (hit + 0.3 * false + 0.7 * missed)).mean()

    assert_one(loss_of({"name": "tversky"}), direct, logits, target)


@pytest.mark.parametrize("per", ["batch", "image"])
def test_focal_tversky_of_exponent_one_is_tversky(per: str) -> None:
    assert_one(
        loss_of({"name": "focal_tversky", "gamma": 1.0, "per": per}), loss_of({"name": "tversky", "per": per}), *batch()
    )


@pytest.mark.parametrize("term", [CE, FOCAL], ids=["cross_entropy", "focal"])
def test_a_prior_of_equal_counts_changes_nothing(term: dict[str, Any]) -> None:
    assert_one(loss_of(term, counts=[7] * NUM_CLASSES, prior={"tau": 1.0}), loss_of(term), *batch())


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_a_prior_is_cross_entropy_of_shifted_logits_and_undone_by_the_opposite_shift(tau: float) -> None:
    logits, target = batch()
    shift = tau * torch.from_numpy(COUNTS / COUNTS.sum()).log().view(1, -1, 1, 1)
    adjusted = loss_of(CE, prior={"tau": tau})
    assert_one(adjusted, lambda z, t: F.cross_entropy(z + shift, t, ignore_index=255), logits, target)
    assert_one(lambda z, t: adjusted(z - shift, t), loss_of(CE), logits, target)


def test_a_prior_is_blind_to_the_unit_of_the_counts() -> None:
    logits, target = batch()
    assert_one(loss_of(CE, prior={"tau": 1.0}), loss_of(CE, prior={"tau": 1.0}, counts=1000 * COUNTS), logits, target)


def test_a_class_that_training_never_saw_gives_a_finite_prior() -> None:
    logits, target = batch(absent=3)
    with pytest.warns(UserWarning, match="3"):
        value, gradient = with_gradient(loss_of(CE, prior={"tau": 1.0}, counts=[90, 9, 1, 0]), logits, target)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_ldam_takes_margins_of_the_fourth_root_from_the_label_and_scales() -> None:
    logits, target = batch()
    margins = torch.from_numpy(COUNTS.astype(float)) ** -0.25
    margins = 0.5 * margins / margins.max()
    label = F.one_hot(target.masked_fill(target == 255, 0), NUM_CLASSES).movedim(-1, 1)

    def direct(z: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(3 * (z - label * margins.view(1, -1, 1, 1)), t, ignore_index=255)

    assert_one(loss_of(CE, margin={"max_margin": 0.5, "scale": 3.0}), direct, logits, target)


def test_a_margin_that_vanishes_leaves_cross_entropy() -> None:
    tiny = loss_of(CE, margin={"max_margin": 1e-14, "scale": 1.0})
    assert_one(tiny, loss_of(CE), *batch())


def test_priors_and_margins_leave_region_terms_alone() -> None:
    logits, target = batch()
    for shared in ({"prior": {"tau": 1.0}}, {"margin": {"scale": 2.0}}):
        named = loss_of(CE, {"name": "dice"}, **shared).terms(logits, target)
        torch.testing.assert_close(named["dice"], loss_of({"name": "dice"})(logits, target), rtol=1e-12, atol=0)
        assert named["cross_entropy"] != loss_of(CE)(logits, target)


@pytest.mark.parametrize("term", [CE, FOCAL, {**FOCAL, "gamma": 0.5}, {"name": "dice"}, {"name": "tversky"}], ids=str)
def test_two_classes_of_a_softmax_are_one_sigmoid_of_the_difference(term: dict[str, Any]) -> None:
    logits, target = batch()
    target = torch.where(target == 255, 255, target % 2)
    soft = build_loss({"terms": [term]}, num_classes=2)
    single = build_loss({"terms": [term], "activation": "sigmoid"}, num_classes=1)
    pair = logits[:, :2]

    def difference(z: Tensor, t: Tensor) -> Tensor:
        return single(z[:, 1:] - z[:, :1], t)

    if term["name"] in ("cross_entropy", "focal"):
        assert_one(soft, difference, pair, target)
        return
    inverse = torch.where(target == 255, 255, 1 - target)

    def both(z: Tensor, t: Tensor) -> Tensor:
        return (difference(z, t) + difference(z.flip(1), inverse)) / 2

    assert_one(soft, both, pair, target)


def test_mining_each_class_keeps_rare_ones_in_the_budget() -> None:
    """Trap: a common hard class fills a shared budget, and the rare one is never trained."""
    logits, target = batch()
    target = torch.where(target == 255, 255, torch.where(target == 3, 3, 0))
    logits[:, 3] += 6 * (target == 3)  # the rare class is easy, the common one is hard
    gradients = {}
    for per_class in (False, True):
        loss = loss_of(CE, ohem={"top_k": 0.3, "per_class": per_class})
        gradients[per_class] = with_gradient(loss, logits, target)[1].abs().sum(1)[target == 3].count_nonzero()
    assert gradients[False] == 0
    assert gradients[True] == round(0.3 * int((target == 3).sum()))
