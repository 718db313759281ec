"""One read of two-class logits on a CPU: each pixel as its log-odds d against its label.

q = σ(d), p = σ(−d), ℓ = log(1 + e^d). For softmax with C = 2, d is the other class's logit less the label's; for
sigmoid it is −z where the target is 1, and z where it is 0. A chunk has R rows of p pixels: a row is an image with
softmax, and a class of an image with sigmoid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from segtrain.kernels.at_label import as_floats
from segtrain.kernels.chunks import Chunk, chunks, few_rows
from segtrain.kernels.labels import to_buckets
from segtrain.kernels.request import Inputs, Request

PARTS, LARGEST = 8, 2**17  # a pixel has few logits here, and as many numbers made from them as with many classes
# Beyond it d changes q or p by less than 1e-12; q³ is a normal number up to it, and others are many times slower.
LIMITS = {torch.float32: 28.0, torch.float64: 230.0}


@dataclass(frozen=True, eq=False)
class Pairs:
    """The inputs as rows of pixels, and what holds for all chunks."""

    logits: Tensor  # [N, C, rows, columns]
    target: Tensor  # [N, G, rows, columns]; G is 1 with softmax, C with sigmoid
    weight: Tensor | None  # [N, 1, rows, columns]
    keep: Tensor | None  # bool, as target
    shift: Tensor | None  # [G, 1]
    margin: Tensor | None  # [G, 2], by label
    request: Request
    dtype: torch.dtype

    @classmethod
    def prepare(cls, inputs: Inputs, request: Request) -> Pairs:
        logits = few_rows(inputs.logits)
        images, num_classes, rows, columns = logits.shape
        groups = num_classes if request.sigmoid else 1
        shape = (images, groups, rows, columns)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        shift = margin = None
        if inputs.shift is not None:
            of_classes = inputs.shift.to(dtype)
            shift = (of_classes if request.sigmoid else of_classes[1:] - of_classes[:1]).view(groups, 1)
        if inputs.margin is not None:
            of_classes = inputs.margin.to(dtype)
            margin = torch.stack((torch.zeros_like(of_classes), of_classes), 1) if request.sigmoid else of_classes[None]
        weight, keep = inputs.pixel_weight, inputs.keep
        return cls(
            logits=logits,
            target=inputs.target.reshape(shape),
            weight=None if weight is None else weight.reshape(images, 1, rows, columns),
            keep=None if keep is None else keep.reshape(shape),
            shift=shift,
            margin=margin,
            request=request,
            dtype=dtype,
        )

    @property
    def groups(self) -> int:
        """G."""
        return self.target.shape[1]

    def chunks(self) -> Iterator[Chunk]:
        """Cut the pixels into chunks."""
        images, _, rows, columns = self.logits.shape
        return chunks(images, self.groups, rows, columns, parts=PARTS, largest=LARGEST)

    def select(self, values: Tensor, chunk: Chunk) -> Tensor:
        """Return a chunk of `[N, G, rows, columns]` as `[R, p]`."""
        return values[chunk.images, :, chunk.rows, chunk.columns].flatten(2).flatten(0, 1)

    def buckets(self, target: Tensor) -> Tensor:
        """Return a part of the target as 0, 1, and 2 where ignored."""
        return to_buckets(target, num_classes=2, ignore_index=self.request.ignore_index)

    def by_row(self, values: Tensor, num_images: int) -> Tensor:
        """Return what `[G, ...]` says of each row of a chunk: `[R, ...]`."""
        return values if num_images == 1 else values.repeat(num_images, *[1] * (values.dim() - 1))


@dataclass(eq=False)
class Odds:
    """A chunk; `[R, p]` where not said otherwise. A pixel that is ignored has d = 0."""

    d: Tensor
    e: Tensor  # e^d, d no further from 0 than the limit
    is_label: Tensor  # [R, 2, p], 1 at the label of each pixel, all 0 where ignored
    sign: Tensor  # what d changes by with the logits' difference: 1 for label 0, −1 for label 1, 0 where ignored
    weight: Tensor | None  # of the pixel; None for 1
    kept: Tensor | None  # the same, 0 where mining leaves the pixel out
    beyond: Tensor | None  # how much d is above the limit; None where it nowhere is

    @cached_property
    def p(self) -> Tensor:
        """1 / (1 + e^d), the probability of the label."""
        return (self.e + 1).reciprocal_()

    @cached_property
    def q(self) -> Tensor:
        """The probability of the other class: 1 − p would round to 0."""
        return self.e * self.p

    def loss(self) -> Tensor:
        """Return −log p, a new tensor; log(1 + e^d) is d to the last digit beyond the limit."""
        loss = torch.log1p(self.e)
        return loss if self.beyond is None else loss.add_(self.beyond)

    def by_label(self, values: Tensor) -> Tensor:
        """Sum `[R, p]` over the pixels of each label: `[R, 2]`."""
        if len(values) == 1:
            return torch.mv(self.is_label[0], values[0]).unsqueeze(0)
        return torch.matmul(self.is_label, values.unsqueeze(2)).squeeze(2)

    def at_label(self, table: Tensor) -> Tensor:
        """Return what `[R, K, 2]` holds for the label of each pixel, 0 where ignored: `[K, R, p]`."""
        if len(table) == 1:
            return torch.mm(table[0], self.is_label[0]).unsqueeze(1)
        return torch.matmul(table, self.is_label).transpose(0, 1)


def read(pairs: Pairs, chunk: Chunk) -> Odds:
    """Return the log-odds of a chunk."""
    is_label = _is_label(pairs, chunk)
    sign = is_label[:, 0] - is_label[:, 1]
    difference = _difference(pairs, chunk)
    d = _of_label(pairs, difference * sign, is_label)
    limit, beyond = LIMITS[pairs.dtype], None
    highest = float(d.amax()) if d.numel() else 0.0
    if not math.isfinite(highest):  # perhaps under an ignored label, where it must not matter
        d = _of_label(pairs, difference.masked_fill(sign == 0, 0.0) * sign, is_label)
    if not highest <= limit:
        beyond = (d - limit).relu_()
    e = (d.clamp_min(-limit) if beyond is None else d.clamp(-limit, limit)).exp_()
    weight = None
    if pairs.weight is not None:
        of_pixels = pairs.weight[chunk.images, :, chunk.rows, chunk.columns].flatten(2).to(pairs.dtype)
        weight = of_pixels.expand(-1, pairs.groups, -1).flatten(0, 1).masked_fill(sign == 0, 0.0)
    kept = weight
    if pairs.keep is not None:
        keep = as_floats(pairs.select(pairs.keep, chunk), pairs.dtype)
        kept = keep if weight is None else keep * weight
    return Odds(d, e, is_label, sign, weight, kept, beyond)


def _is_label(pairs: Pairs, chunk: Chunk) -> Tensor:
    """Return 1 at the label of each pixel of a chunk, `[R, 2, p]`."""
    labels = [-1 if label == pairs.request.ignore_index else label for label in (0, 1)]  # −1 equals no label
    target = pairs.select(pairs.target, chunk).to(pairs.dtype)
    result = torch.empty(len(target), 2, target.shape[1], dtype=pairs.dtype)
    # a comparison is many times slower where it makes bools
    return torch.eq(target.unsqueeze(1), torch.tensor(labels, dtype=pairs.dtype).view(1, 2, 1), out=result)


def _of_label(pairs: Pairs, d: Tensor, is_label: Tensor) -> Tensor:
    """Add the margins to d and scale it, in place."""
    if pairs.margin is not None:
        margin = pairs.by_row(pairs.margin, len(d) // pairs.groups)
        d += torch.matmul(margin.unsqueeze(1), is_label).squeeze(1)
    return d if pairs.request.scale == 1 else d.mul_(pairs.request.scale)


def _difference(pairs: Pairs, chunk: Chunk) -> Tensor:
    """Return what the sign turns into d, `[R, p]`."""
    part = pairs.logits[chunk.images, :, chunk.rows, chunk.columns].to(pairs.dtype)
    difference = part.flatten(2).flatten(0, 1) if pairs.request.sigmoid else (part[:, 1] - part[:, 0]).flatten(1)
    if pairs.shift is None:
        return difference
    return difference + pairs.by_row(pairs.shift, len(difference) // pairs.groups)
