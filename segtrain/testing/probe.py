"""What the properties measure with: small batches drawn from a seed, and the loss and its gradient on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
Activation = Literal["softmax", "sigmoid"]
IMAGES = 2
HEIGHT = 6


class UnusableResult(Exception):
    """The loss gave something else than a scalar tensor; the message says what."""


@dataclass(frozen=True)
class Finding:
    """What a property measured: whether it holds (None: it does not apply) and the numbers behind that."""

    holds: bool | None
    evidence: str


@dataclass(frozen=True, eq=False)
class Probe:
    """A loss, the conventions by which it is called, and the batches that it is called with.

    Checks speak of logits `[N, C, H, W]` and label maps int64 `[N, H, W]`. With `activation: sigmoid` the loss gets the
    labels as `[N, C, H, W]` in {0, 1, ignore_index}.
    """

    loss: Loss
    num_classes: int
    ignore_index: int | None = 255
    activation: Activation = "softmax"
    for_classes: Callable[[int], Loss] | None = None
    weighted: Callable[[Sequence[float]], Loss] | None = None
    tolerance: float = 1e-4
    seed: int = 0

    def batch(
        self,
        *,
        images: int = IMAGES,
        size: tuple[int, int] | None = None,
        num_classes: int | None = None,
        ignored: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """Draw logits and labels in which every class occurs in every image, before a part of the pixels is ignored."""
        classes = num_classes or self.num_classes
        height, width = size or (HEIGHT, max(8, 2 * math.ceil(2 * classes / HEIGHT)))
        generator = torch.Generator().manual_seed(self.seed)
        logits = 2 * torch.randn(images, classes, height, width, generator=generator, dtype=torch.float64)
        order = torch.stack([torch.randperm(height * width, generator=generator) for _ in range(images)])
        labels = (order % classes).view(images, height, width)
        if self.ignore_index is not None:
            labels[labels == self.ignore_index] = 0 if self.ignore_index != 0 else classes - 1
            labels[torch.rand(labels.shape, generator=generator) < ignored] = self.ignore_index
        return logits.to(dtype), labels

    def encode(self, labels: Tensor, *, num_classes: int | None = None) -> Tensor:
        """Return the target that the loss is called with, a copy."""
        if self.activation == "softmax":
            return labels.clone()
        ignored = labels == self.ignore_index if self.ignore_index is not None else torch.zeros_like(labels).bool()
        one_hot = F.one_hot(labels.masked_fill(ignored, 0), num_classes or self.num_classes).movedim(-1, 1)
        return one_hot if self.ignore_index is None else one_hot.masked_fill(ignored[:, None], self.ignore_index)

    def call(self, logits: Tensor, target: Tensor, *, loss: Loss | None = None) -> Tensor:
        """Return the loss of an encoded target, a scalar tensor.

        Raises:
            UnusableResult: the loss returns anything else.
        """
        result = (loss or self.loss)(logits, target)
        if not isinstance(result, Tensor):
            raise UnusableResult(f"returns {type(result).__name__}, not a tensor")
        if result.numel() != 1:
            raise UnusableResult(f"returns shape {list(result.shape)}, not a scalar")
        return result

    def value(self, logits: Tensor, labels: Tensor, *, loss: Loss | None = None) -> float:
        """Return the loss of a label map as a number."""
        with torch.no_grad():
            return float(self.call(logits, self.encode(labels, num_classes=logits.shape[1]), loss=loss))

    def slope(self, logits: Tensor, labels: Tensor, *, loss: Loss | None = None) -> tuple[float, Tensor]:
        """Return the loss of a label map and its gradient in the logits.

        Raises:
            UnusableResult: the loss is not connected to the logits.
        """
        leaf = logits.detach().requires_grad_()
        result = self.call(leaf, self.encode(labels, num_classes=logits.shape[1]), loss=loss)
        if not result.requires_grad:
            raise UnusableResult(f"{float(result):.3g}, without a graph: backward() would raise")
        (gradient,) = torch.autograd.grad(result, leaf, allow_unused=True)
        if gradient is None:
            raise UnusableResult(f"{float(result):.3g}, not connected to the logits")
        return float(result), gradient

    def agree(self, first: float, second: float) -> bool:
        """Say whether two losses are equal up to the tolerance, relative to the larger."""
        return abs(first - second) <= self.tolerance * max(abs(first), abs(second), 1e-3)

    def close(self, first: Tensor, second: Tensor) -> bool:
        """Say whether two gradients are equal up to the tolerance, relative to the largest entry."""
        scale = max(float(first.abs().max()), float(second.abs().max()), 1e-9)
        return bool((first.double() - second.double()).abs().max() <= 10 * self.tolerance * scale)


def compared(probe: Probe, first: float, second: float, *, words: tuple[str, str]) -> Finding:
    """Find that two numbers are equal, and show both in `words`."""
    return Finding(probe.agree(first, second), f"{first:.4g} {words[0]}, {second:.4g} {words[1]}")


def confident(labels: Tensor, *, num_classes: int, logit: float) -> Tensor:
    """Return logits float32 `[N, C, H, W]`: half of `logit` at the label, minus half elsewhere; 0 where it is no class.

    The odds of the label are e^logit in a softmax; sigmoids are as sure that the other classes are not there.
    """
    inside = (labels >= 0) & (labels < num_classes)
    one_hot = F.one_hot(labels.masked_fill(~inside, 0), num_classes).movedim(-1, 1)
    return logit * ((one_hot.float() - 0.5) * inside[:, None])
