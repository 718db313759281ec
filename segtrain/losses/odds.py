"""The softmax as the label sees it: its log-odds, and what the other classes' probabilities sum to."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE_PIXELS = 32768  # float32 products are summed over so many pixels, then in float64


def label_odds(
    scores: Tensor, labels: Tensor, *, valid: Tensor, factor: Tensor, class_dim: int, powers: tuple[int, ...]
) -> tuple[Tensor, dict[int, Tensor]]:
    """Return the log-odds d against the label, and the sums over pixels of the other classes' probabilities.

    d = log(q / p_y) = logsumexp_{j≠y} z_j − z_y with q = 1 − p_y; then p_y = σ(−d) and p_j = σ(d) e_j / Σe, where
    e_j = exp(z_j − max over j≠y): small q and large losses keep full relative precision. The backward is written by
    hand (once differentiable), to hold no more than e and the gradient at full size.

    Args:
        scores: float `[N, C, P]` (class_dim 1) or `[N, P, C]` (class_dim 2); float16 and bfloat16 become float32.
        labels: int64 `[N, P]` in [0, C), anything in that range where not valid.
        valid: bool `[N, P]`.
        factor: `[N, P]` in the computing precision, what each pixel counts in the sums; 0 where not valid.
        powers: which sums to make: k gives Σ_i f_i p_ij^k over the pixels i with label ≠ j; 1 and 2 are known.

    Returns:
        d `[N, P]`, 0 where not valid, and the float64 `[N, C]` sum of each power.
    """
    log_odds, first, second = _LabelOdds.apply(scores, labels, valid, factor, class_dim, powers)
    sums = {1: first, 2: second}
    return log_odds, {power: sums[power] for power in powers}


def two_class_odds(scores: Tensor, buckets: Tensor, *, class_dim: int) -> Tensor:
    """Return the log-odds d `[N, P]` of `label_odds` for two classes: the other logit minus the label's.

    buckets: integer `[N, P]`, 0 or 1, or 2 where the pixel is ignored, which gets d = 0 and no gradient.
    """
    log_odds: Tensor = _TwoClassOdds.apply(scores, buckets, class_dim)
    return log_odds


class _TwoClassOdds(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, buckets: Tensor, class_dim: int) -> Tensor:
        dtype = torch.promote_types(scores.dtype, torch.float32)
        sign = (buckets == 0).to(dtype).sub_((buckets == 1).to(dtype))  # 0 where ignored
        ctx.save_for_backward(sign)
        ctx.class_dim, ctx.dtype = class_dim, scores.dtype
        first, second = (score.to(dtype) for score in scores.unbind(class_dim))
        return (second - first).mul_(sign).masked_fill_(buckets == 2, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (sign,) = ctx.saved_tensors
        slope = (grad * sign).to(ctx.dtype)
        return torch.stack((-slope, slope), dim=ctx.class_dim), None, None


class _LabelOdds(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, labels: Tensor, valid: Tensor, factor: Tensor, class_dim: int, powers: tuple[int, ...]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        index = labels.unsqueeze(class_dim)
        dtype = factor.dtype
        label_score = scores.gather(class_dim, index).to(dtype)
        # The one full-size buffer: a copy of the scores without the label's, changed in place to e.
        others = scores.to(dtype, copy=True).scatter_(class_dim, index, -torch.inf)
        largest = others.amax(class_dim, keepdim=True).clamp_min_(torch.finfo(dtype).min)  # finite at C = 1 too
        # Not the label's −inf but a share too small to count (its square is still a normal number): exp and products
        # are many times slower for infinities and denormal numbers.
        others.sub_(largest).clamp_min_(0.45 * math.log(torch.finfo(dtype).tiny)).exp_()
        total = others.sum(class_dim, keepdim=True).clamp_min_(1.0)  # the largest gives 1; at C = 1 there is none
        broken = total.isnan().logical_and_(~valid.unsqueeze(class_dim))  # NaN or inf under an ignored label
        if broken.is_cuda or broken.any():
            others.masked_fill_(broken, 0.0)
            total.masked_fill_(broken, 1.0)
        log_odds = (largest + total.log() - label_score).masked_fill_(~valid.unsqueeze(class_dim), 0.0)
        ctx.save_for_backward(others, total, log_odds, index, valid, factor)
        ctx.class_dim, ctx.dtype = class_dim, scores.dtype
        ctx.set_materialize_grads(False)
        scale, factor = torch.sigmoid(log_odds) / total, factor.unsqueeze(class_dim)
        first = _sum_pixels(others, factor * scale, class_dim) if 1 in powers else None
        second = _sum_pixels(others.square(), factor * scale.square(), class_dim) if 2 in powers else None
        return log_odds.squeeze(class_dim), first, second

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        others, total, log_odds, index, valid, factor = ctx.saved_tensors
        dim, dtype = ctx.class_dim, others.dtype
        of_odds, first, second = (None if grad is None else grad.to(dtype) for grad in grads)
        with torch.autocast(others.device.type, enabled=False):
            slope = (
                torch.zeros_like(total) if of_odds is None else of_odds.unsqueeze(dim).where(valid.unsqueeze(dim), 0)
            )
            at_label = -slope
            slope = slope / total
            if first is None and second is None:
                grad = others * slope
            else:
                # p ∘ (g − ⟨p, g⟩) with g = f (G₁ + 2 G₂ p), over the other classes; p = scale · e.
                scale = torch.sigmoid(log_odds) / total
                weight = factor.unsqueeze(dim) * scale
                inner = _slopes(others, first, second, scale, dim)
                dot = weight * _sum_classes(others, inner, dim)
                grad = torch.addcmul(slope - scale * dot, inner, weight).mul_(others)
                at_label -= torch.sigmoid(-log_odds) * dot
            return grad.scatter_(dim, index, at_label).to(ctx.dtype), None, None, None, None, None


def _slopes(others: Tensor, first: Tensor | None, second: Tensor | None, scale: Tensor, class_dim: int) -> Tensor:
    """G₁ + 2 G₂ p: one number for each image and class unless squares are summed."""
    if second is None:
        assert first is not None
        return first.unsqueeze(3 - class_dim)
    slopes = (others * scale).mul_(2 * second.unsqueeze(3 - class_dim))
    return slopes if first is None else slopes.add_(first.unsqueeze(3 - class_dim))


def _sum_classes(others: Tensor, slopes: Tensor, class_dim: int) -> Tensor:
    """Σ_j slopes_j e_j for each pixel, the class dimension kept at 1."""
    if others.is_cuda or slopes.shape == others.shape:
        return (others * slopes).sum(class_dim, keepdim=True)
    return slopes.mT @ others if class_dim == 1 else others @ slopes.mT


def _sum_pixels(values: Tensor, factor: Tensor, class_dim: int) -> Tensor:
    """Σ_i factor_i values_i: float64 `[N, C]`, from `[N, C, P]` and `[N, 1, P]`, or `[N, P, C]` and `[N, P, 1]`."""
    if values.is_cuda:  # a matrix product there may round to TF32
        return (values * factor).sum(3 - class_dim, dtype=torch.float64)
    sums = torch.zeros(values.shape[0], values.shape[class_dim], dtype=torch.float64)
    pixel_dim = 3 - class_dim
    tiles = zip(torch.split(values, TILE_PIXELS, pixel_dim), torch.split(factor, TILE_PIXELS, pixel_dim), strict=True)
    for part, weight in tiles:
        product = part @ weight.mT if class_dim == 1 else weight.mT @ part
        sums += product.squeeze(pixel_dim)
    return sums
