"""Losses of coarse logits are those of the logits that F.interpolate makes, forward and backward, at every size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from segtrain.errors import ConfigError
from segtrain.kernels import upsample
from segtrain.kernels.confusion import confusion_update
from segtrain.kernels.mining import HardExamples
from segtrain.kernels.request import encode_mining
from segtrain.kernels.upsample import CoarseLogits, add_adjoint, enlarge, strips
from segtrain.kernels.upsampled_sums import upsampled_class_sums, upsampled_mask
from segtrain.losses import build_loss
from segtrain.losses.class_sums import PREDICTIONS, ClassSums

SIZES = [(28, 20), (23, 31), (7, 5), (7, 11), (4, 3), (64, 5)]
LOSSES: dict[str, dict[str, Any]] = {
    "all the pixel and region terms": {
        "terms": [
            {"name": "cross_entropy", "label_smoothing": 0.1},
            {"name": "focal", "gamma": 1.5},
            {"name": "dice"},
            {"name": "tversky", "per": "image"},
            {"name": "generalized_dice"},
        ],
        "class_weights": {"scheme": "manual", "weights": [1.0, 3.0, 0.5, 2.0]},
    },
    "threshold mining": {"terms": [{"name": "cross_entropy"}, {"name": "dice"}], "ohem": {"threshold": 0.3}},
    "mining by rank": {"terms": [{"name": "cross_entropy"}], "ohem": {"top_k": 0.2, "per_class": True}},
    "sigmoid": {"terms": [{"name": "cross_entropy"}, {"name": "focal"}, {"name": "dice"}], "activation": "sigmoid"},
}


@pytest.fixture(autouse=True)
def small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of a few rows and blocks of a few columns, so that small images are cut into many."""
    monkeypatch.setattr(upsample, "STRIP", 300)
    monkeypatch.setattr(upsample, "BLOCK", 6)


def coarse_batch(size: tuple[int, int], *, crop: int = 0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = 3 * torch.randn(2, 4, 7, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 4, (2, size[0] - crop, size[1] - crop), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    return values.requires_grad_(), target.to(torch.uint8)


def full(values: Tensor, size: tuple[int, int], target: Tensor) -> Tensor:
    larger = interpolate(values, size=size, mode="bilinear", align_corners=False)
    return larger[..., : target.shape[-2], : target.shape[-1]]


@pytest.mark.parametrize("size", SIZES)
def test_strips_are_those_of_interpolate_and_their_adjoint_is_its_gradient(size: tuple[int, int]) -> None:
    values, target = coarse_batch(size, crop=2)
    crop = (target.shape[1], target.shape[2])
    expected = full(values, size, target)
    slope = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    result, gradient = torch.full_like(expected, torch.nan), torch.zeros_like(values)
    parts = list(strips(values, crop))
    assert len(parts) >= (4 if size[0] > 20 else 1)
    for strip in parts:
        result[strip.images, :, strip.rows] = enlarge(values.detach(), strip, size=size, width=crop[1])
        add_adjoint(slope[strip.images, :, strip.rows], strip, size=size, out=gradient)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, values, slope)[0])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [(28, 20), (23, 31), (7, 5)])
@pytest.mark.parametrize("crop", [0, 3])
def test_the_loss_of_coarse_logits_is_that_of_interpolated_ones(size: tuple[int, int], crop: int, name: str) -> None:
    values, target = coarse_batch(size, crop=crop)
    settings = {"num_classes": 4, "ignore_index": 255}
    expected = build_loss(LOSSES[name], **settings)(full(values, size, target), target)
    loss = build_loss(LOSSES[name] | {"fused_upsample": True}, **settings)
    ours = loss(CoarseLogits(values, size, (target.shape[1], target.shape[2])), target)
    torch.testing.assert_close(ours, expected)
    gradients = [torch.autograd.grad(value, values)[0] for value in (ours, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-7, atol=1e-9)
    if not crop:
        torch.testing.assert_close(loss(values, target), expected)


def test_prior_margin_and_pixel_weights_act_on_the_enlarged_logits() -> None:
    values, target = coarse_batch((23, 31))
    weight = torch.rand(target.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for setting in ({"prior": {"tau": 1.0}}, {"margin": {"max_margin": 0.5, "scale": 2.0}, "ohem": {"top_k": 0.3}}):
        section: dict[str, Any] = {"terms": [{"name": "cross_entropy"}], **setting}
        loss, fused = (build_loss(section | more, num_classes=4, frequencies=_frequencies()) for more in ({}, FUSED))
        expected = loss(full(values, (23, 31), target), target, pixel_weight=weight)
        torch.testing.assert_close(fused(values, target, pixel_weight=weight), expected)


FUSED = {"fused_upsample": True}


def _frequencies() -> Any:
    from segtrain.data import ClassFrequencies

    targets = [torch.tensor([[0] * 60 + [1] * 20 + [2] * 15 + [3] * 5]).numpy()]
    return ClassFrequencies.from_targets(targets, num_classes=4, ignore_index=255)


def test_every_head_is_enlarged() -> None:
    values, target = coarse_batch((28, 20))
    smaller = values[..., ::2, ::2]
    section = {"terms": [{"name": "cross_entropy"}, {"name": "dice"}], "auxiliary": {"weights": [1.0, 0.4]}}
    expected = build_loss(section, num_classes=4)([values, smaller], target)
    torch.testing.assert_close(build_loss(section | FUSED, num_classes=4)([values, smaller], target), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_gradient_has_the_type_and_the_layout_of_the_coarse_logits(dtype: torch.dtype) -> None:
    values, target = coarse_batch((28, 20))
    leaf = values.detach().to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    loss = build_loss({"terms": [{"name": "cross_entropy"}], **FUSED}, num_classes=4)
    loss(leaf, target).backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == dtype
    assert leaf.grad.is_contiguous(memory_format=torch.channels_last)
    exact = leaf.detach().double().requires_grad_()
    loss(exact, target).backward()
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-2, atol=1e-5)


def test_no_more_than_a_strip_is_ever_held(monkeypatch: pytest.MonkeyPatch) -> None:
    from segtrain.kernels import upsampled_sums

    made: list[int] = []

    def recorded(*args: Any, **settings: Any) -> Tensor:
        strip = enlarge(*args, **settings)
        made.append(strip.numel())
        return strip

    monkeypatch.setattr(upsampled_sums, "enlarge", recorded)
    values, target = coarse_batch((64, 48))
    build_loss({"terms": [{"name": "dice"}], **FUSED}, num_classes=4)(values, target).backward()
    assert sum(made) == 2 * 2 * 4 * 64 * 48
    assert max(made) <= 300


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # opcheck's own
def test_the_operator_keeps_its_contract_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upsample, "STRIP", 2**20)
    values, target = coarse_batch((9, 8))
    arguments = (values, target, None, None, None, None, [9, 8], [0, 2, 3], False, 255, [2.0], 1.0, True)
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(upsampled_class_sums, arguments, test_utils=utils)
    mining = encode_mining(HardExamples(top_k=0.3))
    torch.library.opcheck(upsampled_mask, (values.detach(), target, None, None, [9, 8], 255, 1.0, mining))


def test_largest_logits_are_counted_of_the_enlarged_ones() -> None:
    values, target = coarse_batch((23, 31), crop=3)
    seen: list[ClassSums] = []
    loss = build_loss({"terms": [{"name": "dice"}], **FUSED}, num_classes=4)
    coarse = CoarseLogits(values, (23, 31), (20, 28))
    loss.terms(coarse, target, observe=seen.append, also=PREDICTIONS)
    matrix = confusion_update(full(values, (23, 31), target), target, num_classes=4).matrix
    assert torch.equal(seen[0].predicted, matrix.sum(1).double())
    assert torch.equal(seen[0].correct, matrix.diagonal(dim1=1, dim2=2).double())


def test_what_does_not_go_together_is_refused() -> None:
    terms = [{"name": "cross_entropy"}]
    for section, message in (
        ({"terms": [*terms, {"name": "lovasz"}]}, "lovasz needs them whole"),
        ({"terms": terms, "auxiliary": {"weights": [1.0, 1.0], "resize": "target"}}, "auxiliary.resize: target"),
        ({"terms": terms, "activation": "sigmoid", "ohem": {"top_k": 0.5}}, "mines with activation: softmax alone"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_loss(section | FUSED, num_classes=4)
    values, target = coarse_batch((28, 20))
    coarse = CoarseLogits(values, (28, 20), (28, 20))
    with pytest.raises(ConfigError, match=r"loss\.fused_upsample: true"):
        build_loss({"terms": terms}, num_classes=4)(coarse, target)
    with pytest.raises(ValueError, match="stand for"):
        build_loss({"terms": terms, **FUSED}, num_classes=4)(coarse, target[:, 1:])


def test_the_terms_without_full_logits_are_those_that_the_configuration_refuses() -> None:
    from segtrain.config.loss import WITH_FULL_LOGITS, LossConfig
    from segtrain.losses.terms import Setting, make_term

    extra = {"boundary": {"classes": [1]}, "distillation": {"teacher": "x.pt"}}
    for name in ("cross_entropy", "focal", "dice", "jaccard", "tversky", "focal_tversky", "generalized_dice", "lovasz"):
        config = LossConfig.model_validate({"terms": [{"name": name, **extra.get(name, {})}]})
        term = make_term(config.terms[0], Setting(config, 4, None))
        assert hasattr(term, "own_statistics") == (name in WITH_FULL_LOGITS)
