"""Priors and margins: the identities of balanced softmax, logit adjustment and LDAM, and whom they reach."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segtrain.errors import ConfigError
from segtrain.losses import SegmentationLoss, build_loss
from segtrain.losses.priors import label_margins, log_prior

MakeBatch = Callable[..., tuple[Tensor, Tensor]]


def loss_of(frequencies: Any, *terms: dict[str, Any] | str, **options: Any) -> SegmentationLoss:
    parts = [{"name": term} if isinstance(term, str) else term for term in terms or ("cross_entropy",)]
    return build_loss({"terms": parts, **options}, num_classes=4, frequencies=frequencies)


def test_balanced_softmax_is_cross_entropy_on_logits_plus_log_counts(
    make_batch: MakeBatch, frequencies: SimpleNamespace
) -> None:
    logits, target = make_batch()
    counts = torch.as_tensor(frequencies.pixels, dtype=torch.float64).view(1, 4, 1, 1)
    expected = F.cross_entropy(logits + counts.log(), target, ignore_index=255)
    loss = loss_of(frequencies, prior={"tau": 1.0})
    torch.testing.assert_close(loss(logits, target), expected, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(
        lambda z: loss(z, target[:, :2, :2]), logits[:, :, :2, :2].detach().requires_grad_()
    )


def test_logit_adjustment_takes_back_what_is_subtracted(make_batch: MakeBatch, frequencies: SimpleNamespace) -> None:
    logits, target = make_batch()
    lowered = logits - 0.7 * log_prior(frequencies).view(1, 4, 1, 1)
    expected = F.cross_entropy(logits, target, ignore_index=255)
    torch.testing.assert_close(loss_of(frequencies, prior={"tau": 0.7})(lowered, target), expected, rtol=1e-12, atol=0)


def test_a_small_tau_and_equal_counts_leave_the_cross_entropy(
    make_batch: MakeBatch, frequencies: SimpleNamespace
) -> None:
    logits, target = make_batch()
    expected = F.cross_entropy(logits, target, ignore_index=255)
    small = loss_of(frequencies, prior={"tau": 1e-12})(logits, target)
    torch.testing.assert_close(small, expected, rtol=1e-10, atol=0)
    frequencies.pixels[:] = 50
    torch.testing.assert_close(loss_of(frequencies, prior={})(logits, target), expected, rtol=1e-12, atol=0)


def test_a_class_without_pixels_counts_as_half_a_pixel_and_is_named(
    make_batch: MakeBatch, frequencies: SimpleNamespace
) -> None:
    logits, target = make_batch()
    frequencies.pixels[2] = 0
    with pytest.warns(UserWarning, match="no training pixel of c2: loss.prior takes it for half a pixel"):
        loss = build_loss(
            {"terms": [{"name": "cross_entropy"}], "prior": {}},
            num_classes=4,
            frequencies=frequencies,
            class_names=["c0", "c1", "c2", "c3"],
        )
    assert loss.shift is not None
    assert float(loss.shift[2]) == pytest.approx(math.log(0.5 / 9910.5))
    grad = torch.autograd.grad(loss(logits, target), logits)[0]
    assert grad.isfinite().all()


def test_margins_fall_with_the_fourth_root_and_the_rarest_gets_the_largest(frequencies: SimpleNamespace) -> None:
    margins = label_margins(frequencies, max_margin=0.5)
    expected = 0.5 * (np.array([9000, 900, 90, 10]) / 10) ** -0.25
    np.testing.assert_allclose(margins.numpy(), expected, rtol=1e-12)
    frequencies.pixels[3] = 0
    margins = label_margins(frequencies, max_margin=0.5)
    assert margins[2].item() == pytest.approx(0.5)
    assert margins[3].item() == 0


def test_ldam_is_cross_entropy_on_scaled_logits_less_the_margin_of_the_label(
    make_batch: MakeBatch, frequencies: SimpleNamespace
) -> None:
    logits, target = make_batch()
    at_label = torch.stack([target == c for c in range(4)], dim=1)
    moved = 5.0 * (logits - at_label * label_margins(frequencies, max_margin=0.5).view(1, 4, 1, 1))
    expected = F.cross_entropy(moved, target, ignore_index=255)
    loss = loss_of(frequencies, margin={"max_margin": 0.5, "scale": 5.0})
    torch.testing.assert_close(loss(logits, target), expected, rtol=1e-12, atol=0)
    small = [z[:, ..., :2, :2] for z in (logits.detach(), target)]
    assert torch.autograd.gradcheck(lambda z: loss(z, small[1]), small[0].requires_grad_())


def test_a_margin_of_nothing_is_cross_entropy(make_batch: MakeBatch, frequencies: SimpleNamespace) -> None:
    logits, target = make_batch()
    loss = loss_of(frequencies, margin={"max_margin": 1e-12, "scale": 1.0})
    torch.testing.assert_close(loss(logits, target), F.cross_entropy(logits, target, ignore_index=255))


@pytest.mark.parametrize("options", [{"prior": {}}, {"margin": {"scale": 2.0}}])
def test_region_terms_read_the_raw_logits(
    make_batch: MakeBatch, frequencies: SimpleNamespace, options: dict[str, Any]
) -> None:
    logits, target = make_batch()
    both = loss_of(frequencies, "cross_entropy", "focal", "dice", **options)
    assert both.num_reads == 2
    assert "reads of the logits: 2" in both.describe()
    values = both.terms(logits, target)
    torch.testing.assert_close(values["dice"], loss_of(None, "dice")(logits, target))
    torch.testing.assert_close(values["cross_entropy"], loss_of(frequencies, **options)(logits, target))
    assert loss_of(frequencies, "cross_entropy", "focal", **options).num_reads == 1


def test_mining_ranks_the_shifted_pixels_and_leaves_region_terms(
    make_batch: MakeBatch, frequencies: SimpleNamespace
) -> None:
    logits, target = make_batch()
    loss = loss_of(frequencies, "cross_entropy", "dice", prior={}, ohem={"top_k": 0.25})
    shifted = logits + log_prior(frequencies).view(1, 4, 1, 1)
    each = F.cross_entropy(shifted, target, ignore_index=255, reduction="none")[target != 255]
    values = loss.terms(logits, target)
    expected = each.topk(round(0.25 * each.numel())).values.mean()
    torch.testing.assert_close(values["cross_entropy"], expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(values["dice"], loss_of(None, "dice")(logits, target))


@pytest.mark.parametrize("key", ["prior", "margin"])
def test_what_they_lack_is_said(frequencies: SimpleNamespace, key: str) -> None:
    with pytest.raises(ConfigError, match=f"loss.{key} needs the class frequencies"):
        loss_of(None, **{key: {}})
    with pytest.raises(ConfigError, match=f"{key} acts on pixel terms, and there is none"):
        loss_of(frequencies, "dice", **{key: {}})
    with pytest.raises(ConfigError, match="keep one of them"):
        loss_of(frequencies, prior={}, margin={})
    frequencies.pixels[:] = 0
    with pytest.raises(ConfigError, match="not one labelled pixel"):
        loss_of(frequencies, **{key: {}})


def test_the_table_shows_priors_and_margins_within_80_columns(frequencies: SimpleNamespace) -> None:
    names = ["road", "car", "pole", "a class whose name goes on and on " * 4]
    for options, row in (
        ({"prior": {"tau": 2.0}}, ["pole", "0.9000", "7.665", f"{2 * math.log(0.009):.3f}"]),
        ({"margin": {}}, ["pole", "0.9000", "7.665", f"{0.5 * 9**-0.25:.4f}"]),
    ):
        section = {"terms": [{"name": "cross_entropy"}], "class_weights": {"scheme": "sqrt_inverse"}, **options}
        text = build_loss(section, num_classes=4, frequencies=frequencies, class_names=names).describe()
        assert max(map(len, text.splitlines())) <= 80
        assert next(line for line in text.splitlines() if line.strip().startswith("pole")).split() == row
