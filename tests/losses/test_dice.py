"""Dice against smp and its formula: absent classes, batch and image means, weights, ignored pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor

from segtrain.losses import SegmentationLoss, build_loss

MakeBatch = Callable[..., tuple[Tensor, Tensor]]


def dice(classes: int = 4, *, weights: list[float] | None = None, **options: Any) -> SegmentationLoss:
    section: dict[str, Any] = {"terms": [{"name": "dice", **options}]}
    if weights is not None:
        section["class_weights"] = {"scheme": "manual", "weights": weights}
    return build_loss(section, num_classes=classes)


def by_formula(logits: Tensor, target: Tensor, *, power: int = 1, smooth: float = 0.0) -> Tensor:
    """Dice loss of each class over the whole batch, `[C]`."""
    valid = (target != 255).unsqueeze(1)
    probability = logits.softmax(1) * valid
    truth = torch.stack([target == c for c in range(logits.shape[1])], dim=1).to(logits.dtype)
    over = (0, 2, 3)
    intersection = (probability * truth).sum(over)
    return 1 - (2 * intersection + smooth) / ((probability**power).sum(over) + truth.sum(over) + smooth)


def gradient(loss: SegmentationLoss, logits: Tensor, target: Tensor) -> Tensor:
    leaf = logits.detach().requires_grad_()
    return torch.autograd.grad(loss(leaf, target), leaf)[0]


@pytest.mark.parametrize("classes", [2, 4, 9])
def test_with_all_classes_present_dice_is_that_of_smp(make_batch: MakeBatch, classes: int) -> None:
    logits, target = make_batch(classes=classes, size=(12, 12))
    expected = DiceLoss("multiclass", ignore_index=255, smooth=0.0)(logits, target)
    torch.testing.assert_close(dice(classes)(logits, target), expected, rtol=1e-10, atol=0)
    (grad,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient(dice(classes), logits, target), grad, rtol=1e-8, atol=1e-15)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("smooth", [0.0, 10.0])
def test_dice_is_its_formula(make_batch: MakeBatch, squared: bool, smooth: float) -> None:
    logits, target = make_batch()
    expected = by_formula(logits, target, power=2 if squared else 1, smooth=smooth).mean()
    torch.testing.assert_close(dice(squared=squared, smooth=smooth)(logits, target), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", [{}, {"squared": True}, {"per": "image"}, {"absent_classes": "count"}])
def test_dice_passes_gradcheck(make_batch: MakeBatch, options: dict[str, Any]) -> None:
    logits, target = make_batch(classes=3, size=(2, 3))
    target[target == 2] = 1
    assert torch.autograd.gradcheck(lambda z: dice(3, **options)(z, target), logits)


def test_absent_classes_do_not_dilute_the_mean(make_batch: MakeBatch) -> None:
    logits, target = make_batch(classes=20)
    target[target != 255] %= 2
    expected = by_formula(logits, target)[:2].mean()
    torch.testing.assert_close(dice(20)(logits, target), expected, rtol=1e-12, atol=0)
    assert expected > 0.8  # an untrained model among 20 classes: not 0.09


def test_counted_absent_classes_cost_one_each(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    target[target == 3] = 0
    expected = (by_formula(logits, target)[:3].sum() + 1) / 4
    torch.testing.assert_close(dice(absent_classes="count")(logits, target), expected, rtol=1e-12, atol=0)


def test_a_class_missed_completely_costs_its_full_share(make_batch: MakeBatch) -> None:
    logits = torch.zeros(1, 4, 50, 50, dtype=torch.float64)
    logits[:, 0] = 50.0
    target = torch.zeros(1, 50, 50, dtype=torch.int64)
    target[0, 0, 0] = 3
    assert dice()(logits, target).item() == pytest.approx(0.5, abs=1e-3)


def test_per_image_averages_over_the_pairs_present(make_batch: MakeBatch) -> None:
    logits, target = make_batch(images=3)
    target[1][target[1] == 2] = 0
    target[2] = 255
    pairs = [by_formula(logits[:1], target[:1]), by_formula(logits[1:2], target[1:2])[[0, 1, 3]]]
    torch.testing.assert_close(dice(per="image")(logits, target), torch.cat(pairs).mean(), rtol=1e-12, atol=0)
    counted = torch.cat([*pairs, torch.ones(1, dtype=torch.float64)]).mean()
    loss = dice(per="image", absent_classes="count")
    torch.testing.assert_close(loss(logits, target), counted, rtol=1e-12, atol=0)


def test_per_image_of_one_image_is_per_batch(make_batch: MakeBatch) -> None:
    logits, target = make_batch(images=1)
    assert torch.equal(dice(per="image")(logits, target), dice(per="batch")(logits, target))


def test_class_weights_weigh_the_class_mean_only_where_asked(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    weights = [1.0, 2.0, 0.5, 8.0]
    each, weight = by_formula(logits, target), torch.tensor(weights, dtype=torch.float64)
    weighted = dice(weights=weights, class_weights=True)(logits, target)
    torch.testing.assert_close(weighted, (each * weight).sum() / weight.sum(), rtol=1e-12, atol=0)
    both = {"terms": [{"name": "cross_entropy"}, {"name": "dice"}]}
    both["class_weights"] = {"scheme": "manual", "weights": weights}  # type: ignore[assignment]
    plain = build_loss(both, num_classes=4).terms(logits, target)["dice"]
    torch.testing.assert_close(plain, each.mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("per", ["batch", "image"])
@pytest.mark.parametrize("absent", ["skip", "count"])
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_all_ignored_gives_zero_with_zero_gradients(
    make_batch: MakeBatch, per: str, absent: str, smooth: float
) -> None:
    logits, target = make_batch(ignored=1.1)
    loss = dice(per=per, absent_classes=absent, smooth=smooth)
    assert loss(logits, target).item() == 0
    assert not gradient(loss, logits, target).any()


def test_tiling_the_batch_leaves_batch_dice(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    tiled = dice()(logits.repeat(1, 1, 2, 2), target.repeat(1, 2, 2))
    torch.testing.assert_close(tiled, dice()(logits, target), rtol=1e-12, atol=0)


def test_image_order_does_not_matter(make_batch: MakeBatch) -> None:
    logits, target = make_batch(images=3)
    for per in ("batch", "image"):
        forward = dice(per=per)(logits, target)
        torch.testing.assert_close(dice(per=per)(logits.flip(0), target.flip(0)), forward, rtol=1e-12, atol=0)


def test_a_perfect_prediction_costs_nothing(make_batch: MakeBatch) -> None:
    _, target = make_batch()
    truth = torch.stack([target == c for c in range(4)], dim=1)
    assert dice()(truth * 100.0, target).item() == pytest.approx(0, abs=1e-12)
    assert dice(squared=True)(truth * 100.0, target).item() == pytest.approx(0, abs=1e-12)


def test_large_float16_images_do_not_overflow() -> None:
    logits = torch.zeros(1, 2, 400, 400, dtype=torch.float16, requires_grad=True)
    target = torch.zeros(1, 400, 400, dtype=torch.uint8)
    target[:, :200] = 1
    loss = dice(2, squared=True)(logits, target)
    assert loss.item() == pytest.approx(1 - 2 * 0.5 * 80000 / (0.25 * 160000 + 80000), rel=1e-6)
    (grad,) = torch.autograd.grad(loss, logits)
    assert grad.isfinite().all()
