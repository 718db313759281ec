"""The focal factor of a pixel and its slope, for any exponent γ ≥ 0."""

from __future__ import annotations

import torch
from torch import Tensor


def focal_power(q: Tensor, gamma: tuple[float, ...], bucket: Tensor) -> Tensor:
    """Return q^γ as a new tensor, with the γ of each pixel's bucket where there are several (0 beyond the last)."""
    if len(gamma) > 1:
        return q.pow(_exponents(q, gamma, bucket))
    return q.square() if gamma[0] == 2 else q.pow(gamma[0])


def focal_slope(loss: Tensor, p: Tensor, q: Tensor, gamma: tuple[float, ...], bucket: Tensor) -> Tensor:
    """Return q^γ (1 + γ p ℓ/q), the change of q^γ ℓ with the log-odds divided by q; ℓ/q → 1 as q → 0."""
    if len(gamma) == 1 and gamma[0] == 2:
        return (p * loss).mul_(2).add_(q).mul_(q)
    exponent = _exponents(q, gamma, bucket) if len(gamma) > 1 else gamma[0]
    ratio = torch.where(q > 0, loss / q, 1.0)
    return focal_power(q, gamma, bucket) * (1 + exponent * p * ratio)


def _exponents(q: Tensor, gamma: tuple[float, ...], bucket: Tensor) -> Tensor:
    return torch.tensor((*gamma, 0.0), dtype=q.dtype)[bucket]
