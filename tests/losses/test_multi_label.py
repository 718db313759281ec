"""Sigmoid mode: a yes or no for each class, against torch and smp; channels, ignored pairs, label maps."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import segmentation_models_pytorch.losses as smp
import torch
from torch import Tensor
from torch.nn import functional as F

from segtrain.errors import ConfigError, DataError
from segtrain.losses import SegmentationLoss, build_loss

MakeBatch = Callable[..., tuple[Tensor, Tensor]]
WEIGHTS = [0.5, 1.0, 2.0, 4.0]


@pytest.fixture
def batch(make_batch: MakeBatch) -> tuple[Tensor, Tensor]:
    """Two images of four classes that overlap; pairs of pixel and class ignored here and there."""
    logits, _ = make_batch()
    generator = torch.Generator().manual_seed(3)
    target = (torch.rand(logits.shape, generator=generator) < 0.3).to(torch.uint8)
    target[torch.rand(logits.shape, generator=generator) < 0.2] = 255
    return logits, target


def sigmoid(*terms: dict[str, Any] | str, classes: int = 4, **options: Any) -> SegmentationLoss:
    parts = [{"name": term} if isinstance(term, str) else term for term in terms]
    return build_loss({"activation": "sigmoid", "terms": parts, **options}, num_classes=classes)


def pairs(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross entropy of each valid pair (0 elsewhere) and which pairs are valid."""
    valid = target != 255
    each = F.binary_cross_entropy_with_logits(logits, (target == 1).double(), reduction="none")
    return each * valid, valid


@pytest.mark.parametrize("reduction", ["valid", "weighted"])
def test_cross_entropy_averages_over_pairs_and_weights_weigh_channels(
    batch: tuple[Tensor, Tensor], reduction: str
) -> None:
    logits, target = batch
    each, valid = pairs(logits, target)
    weight = torch.tensor(WEIGHTS, dtype=torch.float64).view(1, 4, 1, 1)
    plain = sigmoid("cross_entropy")
    torch.testing.assert_close(plain(logits, target), each.sum() / valid.sum(), rtol=1e-12, atol=0)
    options = {"class_weights": {"scheme": "manual", "weights": WEIGHTS}, "reduction": reduction}
    below = valid.sum() if reduction == "valid" else (valid * weight).sum()
    weighted = sigmoid("cross_entropy", **options)
    torch.testing.assert_close(weighted(logits, target), (each * weight).sum() / below, rtol=1e-12, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, [0.0, 1.0, 2.0, 3.0]])
def test_focal_is_the_binary_one_of_each_pair(batch: tuple[Tensor, Tensor], gamma: Any) -> None:
    logits, target = batch
    each, valid = pairs(logits, target)
    exponent = torch.tensor(gamma, dtype=torch.float64).view(1, -1, 1, 1)
    expected = ((1 - (-each).exp()) ** exponent * each * valid).sum() / valid.sum()
    loss = sigmoid({"name": "focal", "gamma": gamma})
    torch.testing.assert_close(loss(logits, target), expected, rtol=1e-10, atol=0)
    if gamma == 0.0:
        torch.testing.assert_close(loss(logits, target), sigmoid("cross_entropy")(logits, target))


@pytest.mark.parametrize("per", ["batch", "image"])
def test_balanced_cross_entropy_is_that_of_hed(batch: tuple[Tensor, Tensor], per: str) -> None:
    logits, target = batch
    target[1, 2] = 0  # no positive: costs nothing there per image
    each, valid = pairs(logits, target)
    over = (0, 2, 3) if per == "batch" else (2, 3)
    positive, negative = target == 1, target == 0
    share = negative.sum(over, keepdim=True) / valid.sum(over, keepdim=True).double()
    expected = (each * torch.where(positive, share, 1 - share)).sum() / valid.sum()
    loss = sigmoid({"name": "balanced_cross_entropy", "per": per})
    torch.testing.assert_close(loss(logits, target), expected, rtol=1e-12, atol=0)


def test_dice_is_that_of_smp(batch: tuple[Tensor, Tensor]) -> None:
    logits, target = batch
    theirs = smp.DiceLoss("multilabel", ignore_index=255)(logits, target.long())
    torch.testing.assert_close(sigmoid("dice")(logits, target), theirs, rtol=1e-6, atol=0)


def test_a_class_without_positives_is_left_out_or_costs_its_share(batch: tuple[Tensor, Tensor]) -> None:
    logits, target = batch
    target[:, 3][target[:, 3] == 1] = 0
    rest = sigmoid("dice", classes=3)(logits[:, :3], target[:, :3])
    torch.testing.assert_close(sigmoid("dice")(logits, target), rest, rtol=1e-12, atol=0)
    counted = sigmoid({"name": "dice", "absent_classes": "count"})(logits, target)
    torch.testing.assert_close(counted, (3 * rest + 1) / 4, rtol=1e-12, atol=0)


def test_multi_label_focal_dice_is_the_sum_of_two_terms_from_one_read(batch: tuple[Tensor, Tensor]) -> None:
    both = sigmoid({"name": "focal", "gamma": 2.0}, "dice")
    assert both.num_reads == 1
    values = both.terms(*batch)
    torch.testing.assert_close(values["total"], sigmoid("focal")(*batch) + sigmoid("dice")(*batch))


def test_labels_are_one_class_that_is_there_and_others_that_are_not(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    opened = F.one_hot(target.clamp(max=3), 4).permute(0, 3, 1, 2)
    opened = torch.where((target == 255).unsqueeze(1), 255, opened)
    loss = sigmoid("focal", "dice", {"name": "balanced_cross_entropy"})
    assert torch.equal(loss(logits, target), loss(logits, opened))
    assert torch.equal(loss(logits, target.to(torch.uint8)), loss(logits, opened))
    negative = build_loss({"activation": "sigmoid", "terms": [{"name": "focal"}]}, num_classes=4, ignore_index=-1)
    assert torch.equal(negative(logits, torch.where(target == 255, -1, target)), sigmoid("focal")(logits, target))


def test_a_label_out_of_range_is_named_and_not_taken_for_none(make_batch: MakeBatch) -> None:
    logits, target = make_batch(ignored=0)
    target[0, 0, :2] = 7
    with pytest.raises(DataError, match=r"7 \(2 pixels\)"):
        sigmoid("dice")(logits, target)


def test_one_channel_takes_targets_without_a_channel_axis(make_batch: MakeBatch) -> None:
    logits, target = make_batch(classes=1)
    target = torch.where(target == 255, 255, torch.arange(7) % 2)
    loss = sigmoid("cross_entropy", "dice", classes=1)
    assert torch.equal(loss(logits, target), loss(logits, target.unsqueeze(1)))
    valid = target != 255
    expected = F.binary_cross_entropy_with_logits(logits.squeeze(1)[valid], target[valid].double())
    torch.testing.assert_close(loss.terms(logits, target)["cross_entropy"], expected, rtol=1e-12, atol=0)


def test_two_channels_agree_with_softmax_of_their_own_logit_against_zero(make_batch: MakeBatch) -> None:
    logits, target = make_batch(classes=1)
    target = torch.where(target == 255, 255, torch.arange(7) % 2)
    two = torch.cat([torch.zeros_like(logits), logits], dim=1)
    softmax = build_loss({"terms": [{"name": "cross_entropy"}]}, num_classes=2)
    torch.testing.assert_close(sigmoid("cross_entropy", classes=1)(logits, target), softmax(two, target))


def test_derived_weights_have_a_mean_of_one_over_the_channels(frequencies: SimpleNamespace) -> None:
    section = {
        "activation": "sigmoid",
        "terms": [{"name": "cross_entropy"}],
        "class_weights": {"scheme": "sqrt_inverse"},
    }
    loss = build_loss(section, num_classes=4, frequencies=frequencies)
    assert loss.class_weights is not None
    assert loss.class_weights.mean().item() == pytest.approx(1)
    assert float(loss.class_weights[3] / loss.class_weights[0]) == pytest.approx(30)


@pytest.mark.parametrize("per", ["batch", "image"])
def test_micro_batches_add_up(batch: tuple[Tensor, Tensor], per: str) -> None:
    logits, target = batch
    target[0, 1] = 255
    loss = sigmoid(
        "cross_entropy", "focal", {"name": "balanced_cross_entropy", "per": per}, {"name": "dice", "per": "image"}
    )
    assert loss.inexact_under_accumulation is None
    weight = torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(1))
    normalizer = loss.normalizer(target.split(1), pixel_weights=weight.split(1))
    parts = [
        loss(z, t, pixel_weight=w, normalizer=normalizer)
        for z, t, w in zip(logits.split(1), target.split(1), weight.split(1), strict=True)
    ]
    whole = loss(logits, target, pixel_weight=weight)
    torch.testing.assert_close(torch.stack(parts).sum(), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"terms": [{"name": "cross_entropy", "label_smoothing": 0.1}]}, "drop it with activation: sigmoid"),
        ({"terms": [{"name": "cross_entropy"}], "prior": {}}, "classes that exclude each other"),
        ({"terms": [{"name": "cross_entropy"}], "margin": {}}, "classes that exclude each other"),
        ({"terms": [{"name": "balanced_cross_entropy"}], "activation": "softmax"}, "set activation: sigmoid"),
    ],
)
def test_what_does_not_go_with_the_activation_is_refused(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_loss({"activation": "sigmoid", **section}, num_classes=4)
