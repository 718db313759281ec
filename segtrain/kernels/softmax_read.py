"""One read of logits on a CPU: a chunk of them as exponentials, with the label's kept apart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from segtrain.kernels.at_label import AtLabel, as_floats, at_label, over_classes
from segtrain.kernels.chunks import PARTS, Chunk, chunks, few_rows, load, pixels_of
from segtrain.kernels.labels import to_buckets
from segtrain.kernels.request import Inputs, Request

PARTS_COPIED = 12
SLOW = -80.0  # float32 has no normal number for e to a little less
SAMPLED = 16  # of so many pixels of the first chunk one tells whether to expect that
SAFE = 1e-18  # sums of e^z between it and its inverse, and their quotients and squares, are far from float32's ends


@dataclass(eq=False)
class Pixels:
    """The inputs as rows of pixels, and what holds for all chunks.

    Attributes:
        careful: whether scores were found to need their maximum taken from them; then those of later chunks do too.
    """

    logits: Tensor  # [N, C, rows, columns]
    labels: Tensor  # [N, rows, columns], C where ignored
    any_ignored: bool
    weight: Tensor | None  # [N, rows, columns], 0 where ignored
    keep: Tensor | None  # bool, the same
    shift: Tensor | None  # [C, 1]
    margin: Tensor | None  # [C]
    scale: float
    dtype: torch.dtype
    careful: bool = False

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
            margin=None if inputs.margin is None else inputs.margin.to(dtype),
            scale=request.scale,
            dtype=dtype,
        )

    @property
    def num_classes(self) -> int:
        """C."""
        return self.logits.shape[1]

    def chunks(self) -> Iterator[Chunk]:
        """Cut the pixels into chunks: smaller ones where each is held once more, as it cannot be worked on in place."""
        in_place = self.logits.dtype == self.dtype and self.logits.shape[-2] == 1 and self.logits.stride(-1) == 1
        return chunks(*self.logits.shape, parts=PARTS if in_place else PARTS_COPIED)

    def shape(self, chunk: Chunk) -> tuple[int, int, int]:
        """Return B, C and p of a chunk."""
        pixels = _length(chunk.rows) * _length(chunk.columns)
        return _length(chunk.images), self.num_classes, pixels

    def at_label(self, chunk: Chunk) -> AtLabel:
        """Return the labels of a chunk."""
        return at_label(pixels_of(self.labels, chunk), num_classes=self.num_classes, dtype=self.dtype)

    def in_buffer(self, buffer: Tensor, chunk: Chunk, *, num_classes: int | None = None) -> Tensor:
        """Return the start of a flat buffer as `[B, C, p]` of a chunk; C is all classes where not given."""
        images, classes, pixels = self.shape(chunk)
        classes = classes if num_classes is None else num_classes
        return buffer[: images * classes * pixels].view(images, classes, pixels)

    def buffer(self, *, num_classes: int | None = None) -> Tensor:
        """Return a flat buffer for the largest chunk, of all classes where their number is not given."""
        first = next(self.chunks(), None)
        classes = self.num_classes if num_classes is None else num_classes
        size = 0
        if first is not None:
            size = classes * _length(first.images) * _length(first.rows) * _length(first.columns)
        return torch.empty(size, dtype=self.dtype)


@dataclass(frozen=True, eq=False)
class Exponentials:
    """A chunk of B images and p pixels after its one exponential; `[B, p]` where not said otherwise.

    q = 1 − p_y is made of a sum over the other classes: the difference would round to 0 near a certain label. An
    ignored pixel has an inverse of 0, so that all it is multiplied with vanishes; the rest are some finite numbers.
    """

    e: Tensor  # [B, C, p], exp(z) or exp(z − max z), with 0 in place of the label's
    inverse: Tensor  # 1 / Σ_j e_j, the label's included
    p: Tensor  # p_y
    q: Tensor
    odds: Tensor  # q / p_y
    labels: AtLabel
    weight: Tensor | None  # of the pixel; None for 1
    kept: Tensor | None  # the same, 0 where mining leaves the pixel out
    weighted: Tensor | None = None  # Σ_{j≠y} slopes_j e_j, where slopes were given
    known_loss: Tensor | None = None

    @cached_property
    def loss(self) -> Tensor:
        """−log p_y."""
        return torch.log1p(self.odds) if self.known_loss is None else self.known_loss


def read(
    pixels: Pixels, chunk: Chunk, e: Tensor, *, slopes: Tensor | None = None, log_mass: Tensor | None = None
) -> Exponentials:
    """Take the exponentials of a chunk into e `[B, C, p]`; add to `log_mass` `[N, C]` while the scores are at hand.

    slopes `[B, C]` are what e is summed over the classes with, beside a plain sum.

    Scores of common size need no maximum taken from them: of each pixel, the sums of e^z are looked at, and only a
    chunk in which one leaves the safe range is done again with care, as are all after it: the rounding of a pixel
    may depend on the chunks before its own.
    """
    labels = pixels.at_label(chunk)
    scores = shifted(pixels, load(pixels.logits, chunk, dtype=pixels.dtype, out=e), labels, out=e)
    before = _copy(scores) if log_mass is not None else None
    part = None if _needs_care(pixels, chunk, scores, labels) else _fast(pixels, chunk, scores, labels, slopes, out=e)
    if part is None and pixels.any_ignored and not pixels.careful:
        # perhaps only because of what stands under an ignored label, which must not matter
        scores = _without_ignored(pixels, chunk, labels, out=e)
        before = _copy(scores) if log_mass is not None else None
        part = _fast(pixels, chunk, scores, labels, slopes, out=e)
    if part is None:
        pixels.careful = True
        scores = _without_ignored(pixels, chunk, labels, out=e)
        scores = torch.sub(scores, scores.amax(1, keepdim=True), out=e)
        before = _copy(scores) if log_mass is not None else None
        part = _careful(pixels, chunk, labels, slopes, e)
    if log_mass is not None and before is not None:
        log_mass[chunk.images] += mass(before, part.loss, labels, part.kept)
    return part


def shifted(pixels: Pixels, scores: Tensor, labels: AtLabel, *, out: Tensor) -> Tensor:
    """Return scale · (z + shift − margin at the label) of scores `[B, C, p]`: as they are, or in `out`."""
    if pixels.shift is not None:
        scores = torch.add(scores, pixels.shift, out=out)
    if pixels.margin is not None:
        scores = labels.subtract(scores, pixels.margin, out=out)
    return scores if pixels.scale == 1 else torch.mul(scores, pixels.scale, out=out)


def mass(scores: Tensor, loss: Tensor, labels: AtLabel, kept: Tensor | None) -> Tensor:
    """Return Σ_i k_i (log Σ_j e^{x_ij} − x_ic), float64 `[B, C]`, of scores x `[B, C, p]`: log Σ is ℓ + x_y."""
    kept = 1 - labels.ignored if kept is None else torch.addcmul(kept, kept, labels.ignored, value=-1)
    if not bool(scores.sum().isfinite()):
        scores = _copy(scores.masked_fill((kept == 0).unsqueeze(1), 0.0))
    log_total = loss + labels.take(scores)
    return (log_total * kept).sum(1, keepdim=True, dtype=torch.float64) - over_pixels(scores, kept)


def over_pixels(values: Tensor, factor: Tensor) -> Tensor:
    """Return Σ_i factor_i values_ci, `[B, C]`, from `[B, C, p]` and `[B, p]`."""
    if len(values) == 1:
        return torch.mv(values[0], factor[0]).unsqueeze(0)
    return torch.matmul(values, factor.unsqueeze(2)).squeeze(2)


def _fast(
    pixels: Pixels, chunk: Chunk, scores: Tensor, labels: AtLabel, slopes: Tensor | None, *, out: Tensor
) -> Exponentials | None:
    """Take the exponentials of scores `[B, C, p]` (which may be `out`) as they are; None where that is not safe."""
    torch.exp(scores, out=out)
    label_e = labels.take_out(out)
    others, *weighted = over_classes(out, slopes).unbind(1)
    if not _is_safe(others, label_e, num_classes=pixels.num_classes):
        return None
    odds = others.div_(label_e)
    p = (odds + 1).reciprocal_()
    inverse = torch.div(p, label_e, out=label_e)
    if pixels.any_ignored:
        inverse.addcmul_(inverse, labels.ignored, value=-1)
    weight, kept = _weights(pixels, chunk)
    return Exponentials(
        e=out,
        inverse=inverse,
        p=p,
        q=odds * p,
        odds=odds,
        labels=labels,
        weight=weight,
        kept=kept,
        weighted=weighted[0] if weighted else None,
    )


def _needs_care(pixels: Pixels, chunk: Chunk, scores: Tensor, labels: AtLabel) -> bool:
    """Whether scores `[B, C, p]` are known to be too large or, by the first chunk, so low that e^z is slow."""
    if pixels.careful:
        return True
    is_first = not (chunk.images.start or chunk.rows.start or chunk.columns.start)
    if not is_first or not scores.numel() or scores[:, :, ::SAMPLED].amin() > SLOW:
        return False
    return bool(scores.masked_fill((labels.ignored == 1).unsqueeze(1), 0.0).amin() <= SLOW)


def _is_safe(others: Tensor, label_e: Tensor, *, num_classes: int) -> bool:
    """Whether no sum came near the ends of float32, and nothing is NaN or infinite."""
    if not label_e.numel():
        return True
    low, high = map(float, label_e.aminmax())
    if not SAFE < low <= high < 1 / SAFE:
        return False
    low, high = map(float, others.aminmax())
    return (low > SAFE or num_classes == 1) and high < 1 / SAFE  # a lone class has no others


def _careful(pixels: Pixels, chunk: Chunk, labels: AtLabel, slopes: Tensor | None, e: Tensor) -> Exponentials:
    """Take the exponentials of scores of any size, z − max z, that stand in e."""
    ignored = labels.ignored == 1
    label_score = labels.take(e)
    # e^x of less is too small to count, and its square still a normal number: others are many times slower
    e.clamp_min_(0.49 * math.log(torch.finfo(e.dtype).tiny)).exp_()
    labels.take_out(e)
    label_e = label_score.exp()
    others, *weighted = over_classes(e, slopes).unbind(1)
    total = others + label_e
    # log(1 + others / e_y) for a likely label; the other form for one whose exponential is all but 0
    loss = torch.where(others < label_e, torch.log1p(others / label_e), total.log() - label_score)
    weight, kept = _weights(pixels, chunk)
    p, q = (label_e / total).masked_fill_(ignored, 1.0), (others / total).masked_fill_(ignored, 0.0)
    inverse = total.reciprocal().masked_fill_(ignored, 0.0)
    loss.masked_fill_(ignored, 0.0)
    return Exponentials(
        e=e,
        inverse=inverse,
        p=p,
        q=q,
        odds=q / p,
        labels=labels,
        weight=weight,
        kept=kept,
        weighted=weighted[0] if weighted else None,
        known_loss=loss,
    )


def _without_ignored(pixels: Pixels, chunk: Chunk, labels: AtLabel, *, out: Tensor) -> Tensor:
    """Return the scores of a chunk, all equal where ignored."""
    scores = load(pixels.logits, chunk, dtype=pixels.dtype, out=out)
    if pixels.any_ignored:
        scores = scores.masked_fill((labels.ignored == 1).unsqueeze(1), 0.0)
    return shifted(pixels, scores, labels, out=out)


def _weights(pixels: Pixels, chunk: Chunk) -> tuple[Tensor | None, Tensor | None]:
    weight = None if pixels.weight is None else pixels_of(pixels.weight, chunk)
    if pixels.keep is None:
        return weight, weight
    keep = as_floats(pixels_of(pixels.keep, chunk), pixels.dtype)
    return weight, keep if weight is None else keep.mul_(weight)


def _copy(values: Tensor) -> Tensor:
    return values.clone(memory_format=torch.contiguous_format)


def _length(part: slice) -> int:
    return int(part.stop - part.start)
