"""One read of two-class logits on a CPU: each pixel as its log-odds d against its label.

q = σ(d), p = σ(−d), ℓ = log(1 + e^d). For softmax with C = 2, d is the other class's logit less the label's; for
sigmoid it is −z where the target is 1, and z where it is 0. A chunk has B images, G groups (one with softmax, the
classes with sigmoid) and p pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from segtrain.kernels.chunks import Chunk, chunks, few_rows
from segtrain.kernels.labels import to_buckets
from segtrain.kernels.request import Inputs, Request

PARTS = 24  # a pixel has few logits here, and as many numbers made from them as with many classes


@dataclass(frozen=True, eq=False)
class Pairs:
    """The inputs as rows of pixels, and what holds for all chunks."""

    logits: Tensor  # [N, C, rows, columns]
    target: Tensor  # [N, G, rows, columns] of 0, 1, and 2 where ignored
    any_ignored: bool
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
        target = to_buckets(inputs.target, num_classes=2, ignore_index=request.ignore_index).reshape(shape)
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
            target=target,
            any_ignored=bool(target.numel()) and int(target.max()) == 2,
            weight=None if weight is None else weight.reshape(images, 1, rows, columns),
            keep=None if keep is None else keep.reshape(shape),
            shift=shift,
            margin=margin,
            request=request,
            dtype=dtype,
        )

    def chunks(self) -> Iterator[Chunk]:
        """Cut the pixels into chunks."""
        return chunks(*self.logits.shape, parts=PARTS)

    def select(self, values: Tensor, chunk: Chunk) -> Tensor:
        """Return a chunk of `[N, G, rows, columns]` as `[B, G, p]`."""
        return values[chunk.images, :, chunk.rows, chunk.columns].flatten(2)


@dataclass(frozen=True, eq=False)
class Odds:
    """A chunk; `[B, G, p]` where not said otherwise."""

    d: Tensor  # 0 where ignored
    is_label: Tensor  # [B, G, 2, p], 1 at the label of each pixel
    sign: Tensor  # what d changes by with the logits' difference: 1 for label 0, −1 for label 1, 0 where ignored
    weight: Tensor | None  # of the pixel; None for 1
    kept: Tensor | None  # the same, 0 where mining leaves the pixel out


def read(pairs: Pairs, chunk: Chunk) -> Odds:
    """Return the log-odds of a chunk."""
    label = pairs.select(pairs.target, chunk).to(pairs.dtype)
    is_label = torch.empty(*label.shape[:2], 2, label.shape[2], dtype=pairs.dtype)
    zero, one = is_label.unbind(2)
    if pairs.any_ignored:  # passes that are faster than comparisons
        valid = (2 - label).clamp_(0, 1)
        torch.mul(label, valid, out=one)
        torch.sub(valid, one, out=zero)
    else:
        one.copy_(label)
        torch.sub(1, label, out=zero)
    sign = zero - one
    part = pairs.logits[chunk.images, :, chunk.rows, chunk.columns].to(pairs.dtype)
    difference = part.flatten(2) if pairs.request.sigmoid else (part[:, 1] - part[:, 0]).flatten(1).unsqueeze(1)
    if pairs.shift is not None:
        difference = difference + pairs.shift
    d = difference * sign
    if pairs.any_ignored and not bool(d.sum().isfinite()):  # NaN or inf under an ignored label
        d = difference.masked_fill(sign == 0, 0.0) * sign
    if pairs.margin is not None:
        d += torch.matmul(pairs.margin.unsqueeze(1), is_label).squeeze(2)
    if pairs.request.scale != 1:
        d *= pairs.request.scale
    weight = None if pairs.weight is None else pairs.select(pairs.weight, chunk).to(pairs.dtype)
    if weight is not None and pairs.any_ignored:
        weight = torch.where(sign == 0, 0.0, weight)
    if pairs.keep is None:
        return Odds(d, is_label, sign, weight, weight)
    kept = pairs.select(pairs.keep, chunk).to(pairs.dtype)
    return Odds(d, is_label, sign, weight, kept if weight is None else kept * weight)
