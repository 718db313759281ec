"""Cross entropy and focal loss against torch, and what their reductions promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segtrain.losses import SegmentationLoss, build_loss

MakeBatch = Callable[..., tuple[Tensor, Tensor]]
WEIGHTS = [0.3, 1.0, 2.5, 4.0]


def one_term(name: str = "cross_entropy", *, classes: int = 4, **options: Any) -> SegmentationLoss:
    term = {"name": name} | ({"gamma": options.pop("gamma")} if "gamma" in options else {})
    return build_loss({"terms": [term], **options}, num_classes=classes)


def manual(weights: list[float] = WEIGHTS) -> dict[str, Any]:
    return {"scheme": "manual", "weights": weights}


def gradient(loss: SegmentationLoss, logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    leaf = logits.detach().requires_grad_()
    return torch.autograd.grad(loss(leaf, target, **options), leaf)[0]


@pytest.mark.parametrize("classes", [2, 4, 300])
def test_cross_entropy_and_its_gradient_are_those_of_torch(make_batch: MakeBatch, classes: int) -> None:
    logits, target = make_batch(classes=classes, ignore_index=-1)
    loss = build_loss({"terms": [{"name": "cross_entropy"}]}, num_classes=classes, ignore_index=-1)
    expected = F.cross_entropy(logits, target, ignore_index=-1)
    torch.testing.assert_close(loss(logits, target), expected, rtol=1e-12, atol=0)
    (grad,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient(loss, logits, target), grad, rtol=1e-10, atol=1e-15)


def test_weighted_reduction_is_that_of_torch(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    loss = one_term(reduction="weighted", class_weights=manual())
    weight = torch.tensor(WEIGHTS, dtype=torch.float64)
    torch.testing.assert_close(loss(logits, target), F.cross_entropy(logits, target, weight, ignore_index=255))


def test_valid_reduction_divides_by_the_number_of_valid_pixels(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    weight = torch.tensor(WEIGHTS, dtype=torch.float64)
    total = F.cross_entropy(logits, target, weight, ignore_index=255, reduction="sum")
    torch.testing.assert_close(one_term(class_weights=manual())(logits, target), total / (target != 255).sum())


def test_a_batch_of_one_class_keeps_its_weight_with_valid_and_loses_it_with_weighted(make_batch: MakeBatch) -> None:
    logits, _ = make_batch()
    target = torch.full((2, 6, 7), 3)
    plain = one_term()(logits, target)
    torch.testing.assert_close(one_term(class_weights=manual())(logits, target), 4.0 * plain)
    torch.testing.assert_close(one_term(class_weights=manual(), reduction="weighted")(logits, target), plain)


@pytest.mark.parametrize("reduction", ["valid", "weighted"])
def test_focal_without_gamma_is_cross_entropy(make_batch: MakeBatch, reduction: str) -> None:
    logits, target = make_batch()
    options = {"reduction": reduction, "class_weights": manual()}
    focal, cross_entropy = one_term("focal", gamma=0.0, **options), one_term(**options)
    assert torch.equal(gradient(focal, logits, target), gradient(cross_entropy, logits, target))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_is_the_formula_of_its_paper(make_batch: MakeBatch, gamma: float) -> None:
    logits, target = make_batch()
    each = F.cross_entropy(logits, target, ignore_index=255, reduction="none")
    expected = ((1 - (-each).exp()) ** gamma * each).sum() / (target != 255).sum()
    loss = one_term("focal", gamma=gamma)
    torch.testing.assert_close(loss(logits, target), expected, rtol=1e-12, atol=0)
    leaf = logits.detach().float().requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(loss(leaf, target), leaf)[0].double(), gradient(loss, logits, target), rtol=1e-4, atol=1e-8
    )


def test_two_class_cross_entropy_is_the_binary_one_of_the_difference(make_batch: MakeBatch) -> None:
    logits, target = make_batch(classes=2, ignored=0)
    expected = F.binary_cross_entropy_with_logits(logits[:, 1] - logits[:, 0], target.double())
    torch.testing.assert_close(one_term(classes=2)(logits, target), expected, rtol=1e-12, atol=0)


def test_ignored_pixels_do_not_dilute_the_mean(make_batch: MakeBatch) -> None:
    logits, target = make_batch(ignored=0)
    half = target.clone()
    half[:, :, ::2] = 255
    kept = logits[:, :, :, 1::2], target[:, :, 1::2]
    torch.testing.assert_close(one_term()(logits, half), one_term()(*kept), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
@pytest.mark.parametrize("reduction", ["valid", "weighted"])
def test_all_ignored_gives_zero_with_zero_gradients(make_batch: MakeBatch, name: str, reduction: str) -> None:
    logits, target = make_batch(ignored=1.1)
    loss = one_term(name, reduction=reduction, class_weights=manual())
    assert loss(logits, target).item() == 0
    assert not gradient(loss, logits, target).any()


def test_only_weightless_classes_in_a_batch_give_zero_and_not_nan(make_batch: MakeBatch) -> None:
    logits, _ = make_batch()
    target = torch.zeros(2, 6, 7, dtype=torch.int64)
    loss = one_term(class_weights=manual([0.0, 1.0, 1.0, 1.0]), reduction="weighted")
    assert loss(logits, target).item() == 0
    assert not gradient(loss, logits, target).any()


def test_tiling_the_batch_leaves_the_mean(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    tiled = logits.repeat(1, 1, 2, 2), target.repeat(1, 2, 2)
    for name in ("cross_entropy", "focal"):
        torch.testing.assert_close(one_term(name)(*tiled), one_term(name)(logits, target), rtol=1e-12, atol=0)


def test_a_uniform_pixel_weight_changes_nothing_and_a_zero_one_masks(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    for reduction in ("valid", "weighted"):
        loss = one_term(class_weights=manual(), reduction=reduction)
        uniform = loss(logits, target, pixel_weight=torch.full(target.shape, 3.0))
        torch.testing.assert_close(uniform, loss(logits, target), rtol=1e-12, atol=0)
        some = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) < 0.5
        masked = loss(logits, torch.where(some, target, 255))
        torch.testing.assert_close(loss(logits, target, pixel_weight=some.double()), masked, rtol=1e-12, atol=0)


def test_diverged_logits_show_in_the_loss(make_batch: MakeBatch) -> None:
    logits, target = make_batch(ignored=0)
    broken = logits.detach().clone()
    broken[0, 0, 0, 0] = torch.nan
    assert one_term()(broken, target).isnan()
    assert one_term(ohem={"top_k": 0.1})(broken, target).isnan()


def test_float16_gradients_do_not_flush_to_zero() -> None:
    logits = torch.zeros(1, 2, 300, 300, dtype=torch.float16, requires_grad=True)
    loss = one_term(classes=2)(logits, torch.zeros(1, 300, 300, dtype=torch.uint8))
    assert loss.dtype == torch.float32
    (loss * 2**12).backward()  # a loss scale: in float16 the mean's 1/90000 alone would lose most of its bits
    assert logits.grad is not None
    expected = torch.tensor(0.5 * 2**12 / 90000, dtype=torch.float16)
    assert torch.equal(logits.grad[0, 1], expected.expand(300, 300))
