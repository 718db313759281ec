"""Auxiliary heads and deep supervision: lists of logits of several sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segtrain.errors import ConfigError
from segtrain.losses import SegmentationLoss, build_loss

MakeBatch = Callable[..., tuple[Tensor, Tensor]]
Heads = tuple[list[Tensor], Tensor]


@pytest.fixture
def heads(make_batch: MakeBatch) -> Heads:
    """A main head of the target's size, 8 × 6, and two smaller ones."""
    logits, target = make_batch(size=(8, 6))
    small = [make_batch(size=size, seed=seed)[0] for size, seed in (((4, 3), 1), ((2, 2), 2))]
    return [logits, *small], target


def loss_of(**options: Any) -> SegmentationLoss:
    return build_loss({"terms": [{"name": "cross_entropy"}, {"name": "dice"}], **options}, num_classes=4)


def auxiliary(resize: str = "logits", **options: Any) -> SegmentationLoss:
    return loss_of(auxiliary={"weights": [1.0, 0.4, 0.2], "resize": resize}, **options)


def test_resized_logits_give_the_weighted_sum_of_the_heads(heads: Heads) -> None:
    logits, target = heads
    values = loss_of(auxiliary={"weights": [0.7, 0.4, 0.2]}).terms(logits, target)
    assert list(values) == ["cross_entropy", "dice", "auxiliary_1", "auxiliary_2", "total"]
    larger = [F.interpolate(z, size=(8, 6), mode="bilinear", align_corners=False) for z in logits]
    alone = [loss_of().terms(z, target) for z in larger]
    torch.testing.assert_close(values["dice"], alone[0]["dice"])
    torch.testing.assert_close(values["auxiliary_2"], alone[2]["total"])
    expected = 0.7 * alone[0]["total"] + 0.4 * alone[1]["total"] + 0.2 * alone[2]["total"]
    torch.testing.assert_close(values["total"], expected)


def test_a_resized_target_keeps_labels_and_ignored_pixels(heads: Heads) -> None:
    logits, target = heads
    values = auxiliary("target").terms(logits, target)
    half = target[:, 1::2, 1::2]  # the nearest pixels to the centres of 2 × 2 cells
    torch.testing.assert_close(values["auxiliary_1"], loss_of()(logits[1], half))


def test_every_head_gets_a_gradient_that_passes_gradcheck(heads: Heads) -> None:
    logits, target = heads
    small = [z[:1, :, : max(1, z.shape[2] // 4), :2].detach().requires_grad_() for z in logits]
    loss = auxiliary()
    assert torch.autograd.gradcheck(lambda *z: loss(list(z), target[:1, :2, :2]), tuple(small))


def test_pixel_weights_follow_the_resized_target(heads: Heads) -> None:
    logits, target = heads
    weight = torch.rand(target.shape, generator=torch.Generator().manual_seed(1))
    values = auxiliary("target").terms(logits, target, pixel_weight=weight)
    half = loss_of()(logits[1], target[:, 1::2, 1::2], pixel_weight=weight[:, 1::2, 1::2])
    torch.testing.assert_close(values["auxiliary_1"], half)


@pytest.mark.parametrize("resize", ["logits", "target"])
def test_micro_batches_add_up_where_the_loss_says_so(heads: Heads, resize: str) -> None:
    logits, target = heads
    target[0, :6] = 255
    loss = build_loss(
        {"terms": [{"name": "cross_entropy"}], "auxiliary": {"weights": [1.0, 0.4, 0.2], "resize": resize}},
        num_classes=4,
    )
    normalizer = loss.normalizer(target.split(1))
    parts = [loss([z[i : i + 1] for z in logits], target[i : i + 1], normalizer=normalizer) for i in range(2)]
    exact = torch.isclose(torch.stack(parts).sum(), loss(logits, target), rtol=1e-10, atol=0)
    assert bool(exact) == (loss.inexact_under_accumulation is None) == (resize == "logits")


def test_heads_with_resized_targets_are_averaged_over_micro_batches(heads: Heads) -> None:
    logits, target = heads
    loss = auxiliary("target")
    normalizer = loss.normalizer(target.split(1))  # counts full targets, and those of this head are smaller
    batches = [([z[i : i + 1] for z in logits], target[i : i + 1]) for i in range(len(target))]
    parts = [loss.terms(*batch, normalizer=normalizer)["auxiliary_1"] for batch in batches]
    alone = [loss.terms(*batch)["auxiliary_1"] for batch in batches]
    torch.testing.assert_close(torch.stack(parts).sum(), torch.stack(alone).mean())


def test_sigmoid_heads_are_resized_too(heads: Heads) -> None:
    logits, target = heads
    for resize in ("logits", "target"):
        assert auxiliary(resize, activation="sigmoid")(logits, target).isfinite()


def test_an_evaluation_takes_the_main_head_alone_and_training_does_not(heads: Heads) -> None:
    logits, target = heads
    loss = auxiliary()
    with torch.no_grad():
        torch.testing.assert_close(loss(logits[0], target), loss_of()(logits[0], target))
    with pytest.raises(ConfigError, match="weights for 3 heads, but the model gave one tensor"):
        loss(logits[0], target)


def test_wrong_numbers_of_heads_say_what_to_set(heads: Heads) -> None:
    logits, target = heads
    with pytest.raises(ConfigError, match=r"a list of 3 logits: set loss\.auxiliary\.weights"):
        loss_of()(logits, target)
    with pytest.raises(ConfigError, match=r"gave 2 logits and loss\.auxiliary\.weights holds 3"):
        auxiliary()(logits[:2], target)
    with pytest.raises(ValueError, match=r"main head's logits .* must have the target's size"):
        auxiliary("target")([z[:, :, :2, :2] for z in logits], target)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"auxiliary": {"weights": [1.0]}}, "at least 2"),
        ({"auxiliary": {"weights": [0.0, 0.0]}}, "weights are all 0"),
        ({"terms": [{"name": "dice", "label": "auxiliary_1"}]}, "name further heads"),
        (
            {"terms": [{"name": "boundary"}], "auxiliary": {"weights": [1.0, 0.4], "resize": "target"}},
            "does not go with boundary",
        ),
    ],
)
def test_sections_that_make_no_sense_are_refused(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_loss({"terms": [{"name": "dice"}], **section}, num_classes=4)
