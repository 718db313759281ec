"""Terms with a pass of their own within the combined loss: reads, inputs, accumulation, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from segtrain.errors import ConfigError
from segtrain.losses import SegmentationLoss, build_loss
from segtrain.losses.boundary import boundary
from segtrain.losses.cl_dice import cl_dice, cl_dice_value
from segtrain.losses.distillation import distillation
from segtrain.losses.lovasz import lovasz

MakeBatch = Callable[..., tuple[Tensor, Tensor]]
DISTILLATION = {"name": "distillation", "teacher": "runs/teacher", "temperature": 3.0}
TERMS: list[dict[str, Any]] = [
    {"name": "lovasz", "per": "image"},
    {"name": "boundary", "classes": ["b", 3]},
    {"name": "cl_dice", "classes": ["c", "d"], "iterations": 2, "per": "image"},
    DISTILLATION,
]


def loss_of(*terms: dict[str, Any] | str, **options: Any) -> SegmentationLoss:
    parts = [{"name": term} if isinstance(term, str) else term for term in terms]
    return build_loss({"terms": parts, **options}, num_classes=4, class_names=["a", "b", "c", "d"])


@pytest.fixture
def window(make_batch: MakeBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Four images, one mostly ignored, and a teacher's logits."""
    logits, target = make_batch(images=4)
    target[1, 1:] = 255
    return logits, target, make_batch(images=4, seed=9)[0].detach()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_they_are_what_their_functions_give(window: tuple[Tensor, ...], activation: Any) -> None:
    logits, target, teacher = window
    loss = loss_of("cross_entropy", *TERMS, activation=activation)
    assert loss.num_reads == 5
    assert loss.needs_teacher
    assert loss.distance_classes == (1, 3)
    if activation == "sigmoid":
        opened = torch.stack([target == c for c in range(4)], dim=1).long()
        target = torch.where((target == 255).unsqueeze(1), 255, opened)
    values = loss.terms(logits, target, teacher_logits=teacher)
    pairs = {
        "lovasz": lovasz(logits, target, per="image", activation=activation),
        "boundary": boundary(logits, target, classes=(1, 3), activation=activation),
        "cl_dice": cl_dice(logits, target, classes=(2, 3), iterations=2, per="image", activation=activation),
        "distillation": distillation(logits, teacher, target, temperature=3.0, activation=activation),
    }
    for label, (top, bottom) in pairs.items():
        torch.testing.assert_close(values[label], top / bottom, rtol=1e-12, atol=0)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("weighted", [False, True])
def test_micro_batches_add_up(window: tuple[Tensor, ...], activation: str, weighted: bool) -> None:
    logits, target, teacher = window
    terms = [term for term in TERMS if not weighted or term["name"] in ("boundary", "distillation")]
    loss = loss_of("cross_entropy", *terms, activation=activation)
    assert loss.inexact_under_accumulation is None
    assert loss.inexact_with_rest is None
    weight = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) if weighted else None
    weights = [None] * 4 if weight is None else list(weight.split(1))
    whole = loss(logits, target, teacher_logits=teacher, pixel_weight=weight)
    normalizer = loss.normalizer(target.split(1), pixel_weights=None if weight is None else weight.split(1))
    parts = [
        loss(z, t, teacher_logits=k, normalizer=normalizer, pixel_weight=w)
        for z, t, k, w in zip(logits.split(1), target.split(1), teacher.split(1), weights, strict=True)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole, rtol=1e-12, atol=0)
    (summed,) = torch.autograd.grad(torch.stack(parts).sum(), logits)
    torch.testing.assert_close(summed, torch.autograd.grad(whole, logits)[0], rtol=1e-8, atol=1e-14)


def test_batch_overlaps_of_skeletons_are_exact_with_the_rest_of_the_window(window: tuple[Tensor, ...]) -> None:
    logits, target, _ = window
    loss = loss_of({"name": "cl_dice", "classes": ["c", "d"]})
    whole = loss(logits, target)
    expected = cl_dice_value(cl_dice(logits, target, classes=(2, 3)))
    torch.testing.assert_close(whole, expected, rtol=1e-12, atol=0)
    assert (
        loss.inexact_under_accumulation == "cl_dice: overlaps are taken within each micro-batch (per: image is exact)"
    )
    assert loss.inexact_with_rest is None
    rest = loss.statistics(logits[2:], target[2:]).detach()
    torch.testing.assert_close(loss(logits[:2], target[:2], rest=rest), whole, rtol=1e-12, atol=0)


def test_a_sort_over_the_batch_says_that_it_stays_within_it() -> None:
    loss = loss_of("lovasz")
    expected = "lovasz: errors are sorted within each micro-batch (per: image is exact)"
    assert loss.inexact_under_accumulation == loss.inexact_with_rest == expected


def test_mining_priors_and_class_weights_leave_them_alone(window: tuple[Tensor, ...]) -> None:
    logits, target, _ = window
    options = {"ohem": {"top_k": 0.5}, "class_weights": {"scheme": "manual", "weights": [1.0, 2.0, 3.0, 4.0]}}
    mined = loss_of("cross_entropy", "lovasz", **options).terms(logits, target)
    torch.testing.assert_close(mined["lovasz"], loss_of("lovasz")(logits, target))


def test_what_they_need_is_said(window: tuple[Tensor, ...]) -> None:
    logits, target, teacher = window
    with pytest.raises(ConfigError, match="needs teacher_logits"):
        loss_of(DISTILLATION)(logits, target)
    with pytest.raises(ConfigError, match="distances were given, but no term"):
        loss_of("dice")(logits, target, distances=teacher)
    with pytest.raises(ConfigError, match=r"classes of boundary: 'bb' is not among the 4 classes; did you mean 'b'"):
        loss_of({"name": "boundary", "classes": ["bb"]})
    with pytest.raises(ConfigError, match="holds a class twice"):
        loss_of({"name": "boundary", "classes": ["b", 1]})
    with pytest.raises(ConfigError, match="boundary stands there twice"):
        loss_of("boundary", {"name": "boundary", "classes": [1]})


@pytest.mark.parametrize("name", ["lovasz", "cl_dice"])
def test_pixel_weights_that_a_term_cannot_use_are_refused_and_not_ignored(
    window: tuple[Tensor, ...], name: str
) -> None:
    logits, target, _ = window
    with pytest.raises(ConfigError, match=f"pixel_weight was given, but {name} has no weights for pixels"):
        loss_of("cross_entropy", name)(logits, target, pixel_weight=torch.ones(target.shape))


def test_distances_are_taken_where_they_are_given(window: tuple[Tensor, ...]) -> None:
    logits, target, _ = window
    maps = torch.rand(4, 4, 6, 7, dtype=torch.float64)
    given = loss_of("boundary")(logits, target, distances=maps)
    valid = (target != 255).unsqueeze(1)
    torch.testing.assert_close(given, (logits.softmax(1) * maps * valid).sum() / valid.sum(), rtol=1e-10, atol=0)
