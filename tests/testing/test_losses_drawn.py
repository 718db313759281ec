"""Invariants of every loss that build_loss can make, on drawn configurations and batches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from segtrain.losses import SegmentationLoss, build_loss

Draw = st.DrawFn
Section = dict[str, Any]


def pixel_terms(activation: str) -> st.SearchStrategy[Section]:
    gamma = st.sampled_from((0.0, 0.5, 1.0, 2.0, 3.0))
    terms = [
        st.just({"name": "cross_entropy"}),
        st.builds(lambda g: {"name": "focal", "gamma": g}, gamma),
    ]
    if activation == "softmax":
        terms.append(st.just({"name": "cross_entropy", "label_smoothing": 0.1}))
    else:
        terms.append(
            st.sampled_from(("batch", "image")).map(lambda per: {"name": "balanced_cross_entropy", "per": per})
        )
    return st.one_of(terms)


@st.composite
def region_terms(draw: Draw) -> Section:
    name = draw(st.sampled_from(("dice", "jaccard", "tversky", "focal_tversky", "generalized_dice")))
    term: Section = {"name": name, "per": draw(st.sampled_from(("batch", "image")))}
    term["smooth"] = draw(st.sampled_from((0.0, 0.0, 1.0)))
    if name != "generalized_dice":
        term["absent_classes"] = draw(st.sampled_from(("skip", "count")))
    if name == "dice":
        term["squared"] = draw(st.booleans())
    return term


@st.composite
def sections(draw: Draw, num_classes: int) -> Section:
    """A loss section that the schema allows."""
    activation = draw(st.sampled_from(("softmax", "softmax", "sigmoid")))
    of_pixels = draw(st.lists(pixel_terms(activation), max_size=2))
    of_regions = draw(st.lists(region_terms(), min_size=0 if of_pixels else 1, max_size=2))
    weight = st.sampled_from((0.0, 0.5, 1.0, 3.0))
    section: Section = {
        "activation": activation,
        "terms": [{**term, "weight": draw(weight)} for term in of_pixels + of_regions],
    }
    if of_pixels and draw(st.booleans()):
        section["class_weights"] = {"scheme": "manual", "weights": [0.1 + (c % 5) for c in range(num_classes)]}
        section["reduction"] = draw(st.sampled_from(("valid", "weighted")))
    if of_pixels and draw(st.booleans()):
        rule: Section = draw(st.sampled_from(({"threshold": 0.6}, {"threshold": 0.3, "min_kept": 5}, {"top_k": 0.3})))
        section["ohem"] = {**rule, "per_class": draw(st.booleans())}
    if of_pixels and activation == "softmax":
        extra: Section = draw(st.sampled_from(({}, {"prior": {"tau": 1.0}}, {"margin": {"scale": 2.0}})))
        section |= extra
    return section


@st.composite
def cases(draw: Draw) -> tuple[SegmentationLoss, Tensor, Tensor, int]:
    """A loss, float32 logits, an int64 target, and its ignore_index."""
    num_classes = draw(st.sampled_from((1, 2, 3, 4, 19)) | st.integers(1, 300))
    section = draw(sections(num_classes))
    ignore_index = draw(st.sampled_from((255, -1)))
    counts = 1 + np.arange(num_classes)[::-1] ** 2
    frequencies = SimpleNamespace(pixels=counts, images=np.full(num_classes, 9), image_pixels=3 * counts)
    loss = build_loss(section, num_classes=num_classes, ignore_index=ignore_index, frequencies=frequencies)

    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = (draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    spread = draw(st.sampled_from((0.1, 2.0, 10.0)))
    logits = spread * torch.randn(size[0], num_classes, *size[1:], generator=generator)
    shape = (size[0], num_classes, *size[1:]) if section["activation"] == "sigmoid" else size
    target = torch.randint(0, 2 if section["activation"] == "sigmoid" else num_classes, shape, generator=generator)
    target[target == ignore_index] = 0
    ignored = torch.rand(size, generator=generator) < draw(st.sampled_from((0.0, 0.4, 1.0)))
    if section["activation"] == "sigmoid":
        ignored = ignored[:, None].expand(shape)
    return loss, logits, target.masked_fill(ignored, ignore_index), ignore_index


def with_gradient(loss: SegmentationLoss, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().requires_grad_()
    value = loss(leaf, target)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def check(case: tuple[SegmentationLoss, Tensor, Tensor, int]) -> None:
    loss, logits, target, ignore_index = case
    value, gradient = with_gradient(loss, logits, target)
    assert value.isfinite()
    assert value >= 0
    assert gradient.isfinite().all()

    ignored = target == ignore_index
    everywhere = ignored if ignored.shape == gradient.shape else ignored[:, None].expand_as(gradient)
    assert not gradient[everywhere].any()
    if bool(ignored.all()):
        assert value == 0
    scale = float(gradient.abs().max())
    if loss.config.activation == "softmax":
        assert float(gradient.sum(1).abs().max()) <= 1e-5 * scale * logits.shape[1] ** 0.5 + 1e-9

    again, same = with_gradient(loss, logits, target)
    assert torch.equal(value, again)
    assert torch.equal(gradient, same)

    bounds = {"rtol": 2e-5, "atol": 1e-6 * max(scale, 1e-3)}
    others = {
        "channels_last": (logits.contiguous(memory_format=torch.channels_last), target),
        "sliced": (torch.stack((logits, logits), 4).flatten(3)[..., ::2], target),
        "int32": (logits, target.int()),
        "int16": (logits, target.short()),
        "reversed images": (logits.flip(0), target.flip(0)),
    }
    if ignore_index == 255 and logits.shape[1] <= 255:
        others["uint8"] = (logits, target.to(torch.uint8))
    for name, inputs in others.items():
        found, slope = with_gradient(loss, *inputs)
        slope = slope.flip(0) if name == "reversed images" else slope
        torch.testing.assert_close(found, value, rtol=2e-5, atol=1e-6, msg=name)
        if loss.mining is None or name != "reversed images":  # equal losses at the edge of a budget are cut by position
            torch.testing.assert_close(slope, gradient, **bounds, msg=name)


def check_sum_of_terms(case: tuple[SegmentationLoss, Tensor, Tensor, int]) -> None:
    loss, logits, target, _ = case
    named = loss.terms(logits, target)
    total = sum(float(term.weight) * named[label] for label, term in zip(loss.labels, loss.config.terms, strict=True))
    torch.testing.assert_close(named["total"], torch.as_tensor(total), rtol=1e-5, atol=1e-6, check_dtype=False)


@given(case=cases())
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_any_configuration_keeps_the_contract_on_any_batch(case: tuple[SegmentationLoss, Tensor, Tensor, int]) -> None:
    check(case)


@given(case=cases())
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
def test_the_total_is_the_weighted_sum_of_whatever_terms(case: tuple[SegmentationLoss, Tensor, Tensor, int]) -> None:
    check_sum_of_terms(case)


@pytest.mark.slow
@given(case=cases())
@settings(max_examples=120, deadline=None, derandomize=True, database=None)
def test_any_configuration_keeps_the_contract_in_many_more_draws(
    case: tuple[SegmentationLoss, Tensor, Tensor, int],
) -> None:
    check(case)
