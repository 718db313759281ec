"""The focal factor of a pixel and its slope, for any exponent γ ≥ 0."""

from __future__ import annotations

import torch
from torch import Tensor

from segtrain.kernels.at_label import AtLabel


def exponents(gamma: tuple[float, ...], labels: AtLabel, *, dtype: torch.dtype) -> float | Tensor:
    """Return γ: a number, or where there are several that of each pixel's label, `[B, p]` (0 where ignored)."""
    if len(gamma) == 1:
        return gamma[0]
    return labels.look_up(torch.tensor(gamma, dtype=dtype).expand(len(labels.ignored), 1, -1))[0]


def focal_power(q: Tensor, exponent: float | Tensor) -> Tensor:
    """Return q^γ as a new tensor; the exponent is a number, or broadcasts to q."""
    return q.square() if isinstance(exponent, float) and exponent == 2 else q.pow(exponent)


def focal_slope(loss: Tensor, p: Tensor, q: Tensor, exponent: float | Tensor) -> Tensor:
    """Return q^γ (1 + γ p ℓ/q), the change of q^γ ℓ with the log-odds divided by q; ℓ/q → 1 as q → 0."""
    if isinstance(exponent, float) and exponent == 2:
        return (p * loss).mul_(2).add_(q).mul_(q)
    return focal_power(q, exponent) * (1 + exponent * p * torch.where(q > 0, loss / q, 1.0))
