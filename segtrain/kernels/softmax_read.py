"""One read of logits on a CPU: a chunk of them as exponentials, with the label's kept apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from segtrain.kernels.chunks import Chunk, chunks, few_rows, load, pixels_of
from segtrain.kernels.labels import to_buckets
from segtrain.kernels.request import Inputs, Request

SAFE = 1e-18  # sums of e^z between it and its inverse, and their quotients and squares, are far from float32's ends


@dataclass(frozen=True, eq=False)
class Pixels:
    """The inputs as rows of pixels, and what holds for all chunks."""

    logits: Tensor  # [N, C, rows, columns]
    labels: Tensor  # [N, rows, columns], C where ignored
    any_ignored: bool
    weight: Tensor | None  # [N, rows, columns], 0 where ignored
    keep: Tensor | None  # bool, the same
    shift: Tensor | None  # [C, 1]
    margin: Tensor | None  # [C + 1]
    scale: float
    dtype: torch.dtype

    @classmethod
    def prepare(cls, inputs: Inputs, request: Request) -> Pixels:
        logits = few_rows(inputs.logits)
        num_classes = logits.shape[1]
        shape = (logits.shape[0], *logits.shape[2:])
        dtype = torch.promote_types(logits.dtype, torch.float32)
        labels = to_buckets(inputs.target, num_classes=num_classes, ignore_index=request.ignore_index).reshape(shape)
        any_ignored = bool(labels.numel()) and int(labels.max()) == num_classes
        weight = None if inputs.pixel_weight is None else inputs.pixel_weight.reshape(shape).to(dtype)
        if weight is not None and any_ignored:
            weight = weight.masked_fill(labels == num_classes, 0.0)
        return cls(
            logits=logits,
            labels=labels,
            any_ignored=any_ignored,
            weight=weight,
            keep=None if inputs.keep is None else inputs.keep.reshape(shape),
            shift=None if inputs.shift is None else inputs.shift.to(dtype).view(-1, 1),
            margin=None if inputs.margin is None else pad(inputs.margin.to(dtype), (0, 1)),
            scale=request.scale,
            dtype=dtype,
        )

    @property
    def num_classes(self) -> int:
        """C."""
        return self.logits.shape[1]

    def chunks(self) -> Iterator[Chunk]:
        """Cut the pixels into chunks."""
        return chunks(*self.logits.shape)

    def buffer(self) -> Tensor:
        """Return a flat buffer for the largest chunk with a row of zeros beside its classes."""
        first = next(self.chunks(), None)
        size = 0
        if first is not None:
            size = (self.num_classes + 1) * _length(first.images) * _length(first.rows) * _length(first.columns)
        return torch.zeros(size, dtype=self.dtype)


@dataclass(frozen=True, eq=False)
class Exponentials:
    """A chunk of B images and p pixels after its one exponential; `[B, p]` where not said otherwise.

    q = 1 − p_y is made of a sum over the other classes: the difference would round to 0 near a certain label. An
    ignored pixel has p = 1, q = 0, no loss and an inverse of 0, so that all it is multiplied with vanishes.
    """

    e: Tensor  # [B, C, p], exp(z) or exp(z − max z), with 0 in place of the label's
    inverse: Tensor  # 1 / Σ_j e_j, the label's included
    p: Tensor  # p_y
    q: Tensor
    odds: Tensor  # q / p_y
    bucket: Tensor  # int64, the label, C where ignored
    weight: Tensor | None  # of the pixel; None for 1
    kept: Tensor | None  # the same, 0 where mining leaves the pixel out
    known_loss: Tensor | None = None

    @cached_property
    def loss(self) -> Tensor:
        """−log p_y."""
        return torch.log1p(self.odds) if self.known_loss is None else self.known_loss


def read(pixels: Pixels, chunk: Chunk, buffer: Tensor, log_mass: Tensor | None = None) -> Exponentials:
    """Take the exponentials of a chunk; add to `log_mass` `[N, C]` on the way, where the scores are still at hand.

    Scores of common size need no maximum taken from them: of each pixel, the sums of e^z are looked at, and only a
    chunk in which one leaves the safe range is done again with care.
    """
    bucket = pixels_of(pixels.labels, chunk).long()
    size = (len(bucket), pixels.num_classes + 1, bucket.shape[1])
    rows = buffer[: size[0] * size[1] * size[2]].view(size)
    scores = shifted(pixels, load(pixels.logits, chunk, dtype=pixels.dtype, out=rows[:, :-1]), rows, bucket)
    before = scores.clone(memory_format=torch.contiguous_format) if log_mass is not None else None
    part = _fast(pixels, chunk, scores, rows, bucket)
    if part is None and pixels.any_ignored:
        # perhaps only because of what stands under an ignored label, which must not matter
        scores = _without_ignored(pixels, chunk, rows, bucket)
        before = scores.clone(memory_format=torch.contiguous_format) if log_mass is not None else None
        part = _fast(pixels, chunk, scores, rows, bucket)
    if part is None:
        scores = _without_ignored(pixels, chunk, rows, bucket)
        scores = torch.sub(scores, scores.amax(1, keepdim=True), out=rows[:, :-1])
        before = scores.clone(memory_format=torch.contiguous_format) if log_mass is not None else None
        part = _careful(pixels, chunk, rows, bucket)
    if log_mass is not None and before is not None:
        log_mass[chunk.images] += mass(before, part.loss, bucket, part.kept)
    return part


def shifted(pixels: Pixels, scores: Tensor, rows: Tensor, bucket: Tensor) -> Tensor:
    """Return scale · (z + shift − margin at the label) of scores `[B, C, p]`: as it is, or in `rows` `[B, C + 1, p]`."""
    e = rows[:, :-1]
    if pixels.shift is not None:
        scores = torch.add(scores, pixels.shift, out=e)
    if pixels.margin is not None:
        e.copy_(scores)
        rows.scatter_add_(1, bucket.unsqueeze(1), -pixels.margin[bucket].unsqueeze(1))
        scores = e
    return scores if pixels.scale == 1 else torch.mul(scores, pixels.scale, out=e)


def mass(scores: Tensor, loss: Tensor, bucket: Tensor, kept: Tensor | None) -> Tensor:
    """Return Σ_i k_i (log Σ_j e^{x_ij} − x_ic), float64 `[B, C]`, of scores x `[B, C, p]`: log Σ is ℓ + x_y."""
    num_classes = scores.shape[1]
    valid = (bucket < num_classes).to(scores.dtype)
    kept = valid if kept is None else valid * kept
    log_total = loss + scores.gather(1, bucket.clamp(max=num_classes - 1).unsqueeze(1)).squeeze(1)
    if not _is_finite(scores):
        scores = scores.masked_fill((kept == 0).unsqueeze(1), 0.0).contiguous()
    return (log_total * kept).nansum(1, keepdim=True, dtype=torch.float64) - over_pixels(scores, kept)


def over_pixels(values: Tensor, factor: Tensor) -> Tensor:
    """Return Σ_i factor_i values_ci, `[B, C]`, from `[B, C, p]` and `[B, p]`."""
    if len(values) == 1:
        return torch.mv(values[0], factor[0]).unsqueeze(0)
    return torch.matmul(values, factor.unsqueeze(2)).squeeze(2)


def over_classes(values: Tensor, factor: Tensor) -> Tensor:
    """Return Σ_c factor_c values_ci, `[B, p]`, from `[B, C, p]` and `[B, C]`: faster than a sum."""
    if len(values) == 1:
        return torch.mv(values[0].t(), factor[0]).unsqueeze(0)
    return torch.matmul(factor.unsqueeze(1), values).squeeze(1)


def _fast(pixels: Pixels, chunk: Chunk, scores: Tensor, rows: Tensor, bucket: Tensor) -> Exponentials | None:
    """Take the exponentials as they are, of scores `[B, C, p]` (which may be in `rows`); None where that is not safe."""
    e, at_bucket = rows[:, :-1], bucket.unsqueeze(1)
    torch.exp(scores, out=e)
    rows[:, -1] = torch.inf  # the label's exponential of an ignored pixel: 1 / ∞ then does away with it
    label_e = rows.gather(1, at_bucket).squeeze(1)
    rows.scatter_(1, at_bucket, torch.zeros((), dtype=rows.dtype).expand(at_bucket.shape))
    others = over_classes(e, torch.ones_like(rows[:, :-1, 0]))
    if not _is_safe(pixels, chunk, others, label_e):
        return None
    odds = others / label_e
    p = (1 + odds).reciprocal_()
    weight, kept = _weights(pixels, chunk)
    return Exponentials(e, p / label_e, p, odds * p, odds, bucket, weight, kept)


def _is_safe(pixels: Pixels, chunk: Chunk, others: Tensor, label_e: Tensor) -> bool:
    """Whether no sum came near the ends of float32, and nothing is NaN or infinite but what is ignored."""
    if not label_e.numel():
        return True
    if not label_e.min() > SAFE:
        return False
    low, high = others.aminmax()
    if not (low > SAFE and high < 1 / SAFE) and not (pixels.num_classes == 1 and high == 0):
        return False
    if not pixels.any_ignored:
        return bool(label_e.max() < torch.inf)
    num_ignored = (pixels_of(pixels.labels, chunk) == pixels.num_classes).sum()
    return bool((label_e == torch.inf).sum() == num_ignored)


def _careful(pixels: Pixels, chunk: Chunk, rows: Tensor, bucket: Tensor) -> Exponentials:
    """Take the exponentials of scores of any size, z − max z, that stand in `rows`."""
    e, at_label = rows[:, :-1], bucket.clamp(max=pixels.num_classes - 1).unsqueeze(1)
    ignored = bucket == pixels.num_classes
    label_score = rows.gather(1, at_label).squeeze(1)
    e.exp_()
    label_e = label_score.exp()
    e.scatter_(1, at_label, torch.zeros_like(label_e).unsqueeze(1))
    others = e.sum(1)
    total = others + label_e
    # log(1 + others / e_y) for a likely label; the other form for one whose exponential is all but 0
    loss = torch.where(others < label_e, torch.log1p(others / label_e), total.log() - label_score)
    weight, kept = _weights(pixels, chunk)
    p, q = (label_e / total).masked_fill_(ignored, 1.0), (others / total).masked_fill_(ignored, 0.0)
    loss.masked_fill_(ignored, 0.0)
    inverse = total.reciprocal().masked_fill_(ignored, 0.0)
    return Exponentials(e, inverse, p, q, q / p, bucket, weight, kept, known_loss=loss)


def _without_ignored(pixels: Pixels, chunk: Chunk, rows: Tensor, bucket: Tensor) -> Tensor:
    """Return the scores of a chunk, all equal where ignored."""
    scores = load(pixels.logits, chunk, dtype=pixels.dtype, out=rows[:, :-1])
    if pixels.any_ignored:
        scores = scores.masked_fill((bucket == pixels.num_classes).unsqueeze(1), 0.0)
    return shifted(pixels, scores, rows, bucket)


def _weights(pixels: Pixels, chunk: Chunk) -> tuple[Tensor | None, Tensor | None]:
    weight = None if pixels.weight is None else pixels_of(pixels.weight, chunk)
    if pixels.keep is None:
        return weight, weight
    keep = pixels_of(pixels.keep, chunk)
    return weight, keep.to(pixels.dtype) if weight is None else weight * keep


def _is_finite(values: Tensor) -> bool:
    return bool(values.sum().isfinite())


def _length(part: slice) -> int:
    return int(part.stop - part.start)
