"""The focal factor of a pixel and its slope, for any exponent γ ≥ 0."""

from __future__ import annotations

import torch
from torch import Tensor


def exponents(gamma: tuple[float, ...], bucket: Tensor, *, dtype: torch.dtype) -> float | Tensor:
    """Return γ: a number, or where there are several that of each pixel's bucket (0 beyond the last)."""
    return gamma[0] if len(gamma) == 1 else torch.tensor((*gamma, 0.0), dtype=dtype)[bucket]


def focal_power(q: Tensor, exponent: float | Tensor) -> Tensor:
    """Return q^γ as a new tensor; the exponent is a number, or broadcasts to q."""
    return q.square() if isinstance(exponent, float) and exponent == 2 else q.pow(exponent)


def focal_slope(loss: Tensor, p: Tensor, q: Tensor, exponent: float | Tensor) -> Tensor:
    """Return q^γ (1 + γ p ℓ/q), the change of q^γ ℓ with the log-odds divided by q; ℓ/q → 1 as q → 0."""
    if isinstance(exponent, float) and exponent == 2:
        return (p * loss).mul_(2).add_(q).mul_(q)
    return focal_power(q, exponent) * (1 + exponent * p * torch.where(q > 0, loss / q, 1.0))
