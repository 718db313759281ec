"""Sums over the pixels of each class of what follows from a pixel's log-odds alone, in tiles that stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE_PIXELS = 65536


def pixel_sums(
    log_odds: Tensor,
    buckets: Tensor,
    *,
    num_classes: int,
    kinds: Sequence[str],
    gamma: float,
    weight: Tensor | None = None,
    keep: Tensor | None = None,
) -> dict[str, Tensor]:
    """Sum by class, with p = σ(−d), q = σ(d) = 1 − p and ℓ = softplus(d) = −log p; once differentiable in d.

    cross_entropy: ℓ. focal: q^γ ℓ. label, label_squared: p, p². other, other_squared: q, q². All keep full relative
    precision for large |d| and have finite gradients for every γ ≥ 0.

    Args:
        log_odds: d, float `[N, P]`; finite where ignored.
        buckets: integer `[N, P]`, the class of each pixel or `num_classes` where ignored.
        kinds: which sums to make.
        weight: in the type of d, `[N, P]`: a factor of each pixel in every sum; 0 where ignored.
        keep: bool `[N, P]`: pixels that stay in cross_entropy and focal.

    Returns:
        float64 `[N, C]` for each kind.
    """
    sums = _PixelSums.apply(log_odds, buckets, weight, keep, num_classes, gamma, tuple(kinds))
    return dict(zip(kinds, sums, strict=True))


def sum_by_class(values: Tensor, buckets: Tensor, *, num_classes: int) -> Tensor:
    """Sum values `[N, P]` into float64 `[N, C]` by their bucket (integer `[N, P]`; bucket C is dropped).

    Deterministic on every device: CUDA adds floats in no fixed order when it scatters, so there it is one
    masked sum for each class.
    """
    if values.is_cuda:
        return masked_sums(values, buckets, num_classes=num_classes)
    sums = torch.zeros(len(values), num_classes + 1, dtype=torch.float64, device=values.device)
    return sums.scatter_add_(1, buckets.long(), values.double())[:, :num_classes]


def masked_sums(values: Tensor, buckets: Tensor, *, num_classes: int) -> Tensor:
    """`sum_by_class` as one masked sum for each class: slower, in a fixed order on any device."""
    each = [torch.where(buckets == c, values, 0.0).sum(1, dtype=torch.float64) for c in range(num_classes)]
    return torch.stack(each, dim=1)


class _PixelSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        log_odds: Tensor,
        buckets: Tensor,
        weight: Tensor | None,
        keep: Tensor | None,
        num_classes: int,
        gamma: float,
        kinds: tuple[str, ...],
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(log_odds, buckets, weight, keep)
        ctx.num_classes, ctx.gamma, ctx.kinds = num_classes, gamma, kinds
        ctx.set_materialize_grads(False)
        shape = (len(log_odds), num_classes)
        sums = {kind: torch.zeros(shape, dtype=torch.float64, device=log_odds.device) for kind in kinds}
        for tile in _tiles(log_odds):
            all_pixels, kept_pixels = _tile_buckets(buckets[:, tile], keep, tile, num_classes)
            for kind, values in _values(log_odds[:, tile], gamma, kinds):
                where = kept_pixels if kind in ("cross_entropy", "focal") else all_pixels
                weighted = values if weight is None else values * weight[:, tile]
                sums[kind] += sum_by_class(weighted, where, num_classes=num_classes)
        return tuple(sums.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        log_odds, buckets, weight, keep = ctx.saved_tensors
        # A last column of zeros: what the bucket of the ignored pixels gets.
        slopes = {
            kind: torch.nn.functional.pad(grad, (0, 1)).to(log_odds.dtype)
            for kind, grad in zip(ctx.kinds, grads, strict=True)
            if grad is not None
        }
        result = torch.zeros_like(log_odds)
        for tile in _tiles(log_odds):
            all_pixels, kept_pixels = _tile_buckets(buckets[:, tile], keep, tile, ctx.num_classes)
            part = result[:, tile]
            for kind, values in _derivatives(log_odds[:, tile], ctx.gamma, tuple(slopes)):
                where = kept_pixels if kind in ("cross_entropy", "focal") else all_pixels
                part.addcmul_(slopes[kind].gather(1, where), values)
            if weight is not None:
                part *= weight[:, tile]
        return result, None, None, None, None, None, None


def _tiles(log_odds: Tensor) -> Iterator[slice]:
    """Ranges of pixels (of all images at once) that fit the cache; on CUDA one range, to launch few kernels."""
    images, pixels = log_odds.shape
    step = max(pixels if log_odds.is_cuda else TILE_PIXELS // max(images, 1), 1)
    yield from (slice(start, start + step) for start in range(0, pixels, step))


def _tile_buckets(buckets: Tensor, keep: Tensor | None, tile: slice, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the int64 buckets of a tile, for all terms and for those that mining masks."""
    everywhere = buckets.long()
    return everywhere, everywhere if keep is None else everywhere.masked_fill(~keep[:, tile], num_classes)


def _values(d: Tensor, gamma: float, kinds: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    q, p = torch.sigmoid(d), torch.sigmoid(-d)
    loss = _softplus(d) if "cross_entropy" in kinds or "focal" in kinds else d
    for kind in kinds:
        match kind:
            case "cross_entropy":
                yield kind, loss
            case "focal":
                yield kind, q.pow(gamma).mul_(loss)
            case "label" | "other":
                yield kind, p if kind == "label" else q
            case _:
                yield kind, (p if kind == "label_squared" else q).square()


def _derivatives(d: Tensor, gamma: float, kinds: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """What each kind changes by with d: dq/dd = p q, dp/dd = −p q, dℓ/dd = q."""
    q, p = torch.sigmoid(d), torch.sigmoid(-d)
    for kind in kinds:
        match kind:
            case "cross_entropy":
                yield kind, q
            case "focal":  # q^γ (γ p ℓ + q): no power of q below γ, so nothing infinite
                yield kind, (gamma * p).mul_(_softplus(d)).add_(q).mul_(q.pow(gamma))
            case "label" | "other":
                yield kind, (p * q).neg_() if kind == "label" else p * q
            case "label_squared":
                yield kind, (p * p).mul_(q).mul_(-2)
            case "other_squared":
                yield kind, (q * q).mul_(p).mul_(2)


def _softplus(d: Tensor) -> Tensor:
    """log(1 + e^d), exact to rounding for any d."""
    return d.abs().neg_().exp_().log1p_().add_(d.clamp_min(0))
