"""The softmax class sums on a CPU, forward and backward, in chunks: nothing of the size of the logits but the gradient.

The notation is that of `Exponentials`; the backward takes the exponentials anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from segtrain.kernels.chunks import Chunk, few_rows, is_plain, load, pixels_of
from segtrain.kernels.focal import exponents, focal_power, focal_slope
from segtrain.kernels.labels import count, count_checked
from segtrain.kernels.mined import MINED, MinedRead
from segtrain.kernels.pages import empty_like
from segtrain.kernels.request import Inputs, Request
from segtrain.kernels.softmax_read import Exponentials, Pixels, mass, over_pixels, read, shifted

BY_LABEL = {  # what a sum adds up at the label of each pixel
    "probability": "p",
    "intersection": "p",
    "squared_probability": "p_squared",
    "cross_entropy": "cross_entropy",
    "focal": "focal",
}
TILE_PIXELS = 2**16


def forward(inputs: Inputs, request: Request) -> tuple[Tensor, Tensor, Tensor]:
    """Return the wanted sums `[K, N, C]`, the counts (pixels, kept) `[2, N, C]`, both float64, and the mined mask.

    The mask is bool in the shape of the target where `request.mining` says so, else empty.

    Raises:
        DataError: a label out of range.
    """
    num_classes = inputs.logits.shape[1]
    counts = count_checked(inputs.target, num_classes=num_classes, ignore_index=request.ignore_index)[:, :-1]
    pixels = Pixels.prepare(inputs, request)
    sums = {name: torch.zeros_like(counts) for name in request.wanted}
    kinds = sorted({BY_LABEL[name] for name in request.wanted if name in BY_LABEL})
    rule = request.rule
    mined = None if rule is None else MinedRead(rule, pixels.labels.shape, dtype=pixels.dtype)
    rows = len(kinds) + (mined is not None)  # the last one counts what is mined
    by_label = torch.zeros(rows, len(counts), num_classes + 1, dtype=torch.float64)
    buffer = pixels.buffer()
    log_mass = sums.get("log_mass") if mined is None else None
    for chunk in pixels.chunks() if request.wanted or mined is not None else ():
        part = read(pixels, chunk, pixels.in_buffer(buffer, chunk), log_mass=log_mass)
        taken = [] if mined is None else [_take(mined, chunk, part)]
        kept = taken[0] if taken else part.kept
        values = [_value(kind, part, kept, request.gamma) for kind in kinds]
        _add_by_label(by_label[:, chunk.images], part.bucket, values + taken)
        _add_others(sums, part, chunk)
    mask = torch.empty(0, dtype=torch.bool)
    if mined is not None:
        final = _settle(mined, by_label, kinds, counts, pixels, request.gamma)
        if "log_mass" in sums:
            _add_log_mass(sums["log_mass"], mined.losses, final, pixels, buffer)
        mask = final.view(inputs.target.shape)
    for name in sums:
        if name in BY_LABEL:
            sums[name] += by_label[kinds.index(BY_LABEL[name]), :, :num_classes]
    stacked = torch.stack(list(sums.values())) if sums else counts.new_zeros(0, *counts.shape)
    kept_counts = _counts(counts, pixels, pixels.keep) if mined is None else by_label[-1, :, :num_classes]
    return stacked, torch.stack((_counts(counts, pixels, None), kept_counts)), mask


def _take(mined: MinedRead, chunk: Chunk, part: Exponentials) -> Tensor:
    """Return what each pixel of a chunk counts in the pixel terms, `[B, p]`, as far as mining knows yet."""
    kept = mined.take((chunk.images, chunk.rows, chunk.columns), part.loss)
    return kept if part.weight is None else kept * part.weight


def _settle(
    mined: MinedRead, by_label: Tensor, kinds: list[str], counts: Tensor, pixels: Pixels, gamma: tuple[float, ...]
) -> Tensor:
    """Return the final mask; where the read took another, make the sums of the mined pixels anew."""
    mask = mined.finish(mined.mask.count_nonzero(), counts.sum(), lambda: pixels.labels, num_buckets=pixels.num_classes)
    if not mined.was_right:
        by_label[-1, :, : pixels.num_classes] = _counts(counts, pixels, mask)
        _add_mined(by_label, kinds, mined.losses, mask, pixels, gamma)
    return mask


def _counts(counts: Tensor, pixels: Pixels, kept: Tensor | None) -> Tensor:
    """Return the pixels of each class that are kept, or the sums of their weights, `[N, C]`; `counts` are of all."""
    if kept is None and pixels.weight is None:
        return counts
    labels = pixels.labels.flatten(1)
    buckets = labels if kept is None else torch.where(kept.flatten(1), labels, pixels.num_classes)
    weight = None if pixels.weight is None else pixels.weight.flatten(1)
    return count(buckets, num_buckets=pixels.num_classes, weight=weight)


def _value(kind: str, part: Exponentials, kept: Tensor | None, gamma: tuple[float, ...]) -> Tensor:
    """Return what a kind of sum adds up, `[B, p]`; anything where ignored, for the bucket of these is dropped."""
    if kind in MINED:
        value = part.loss
        if kind == "focal":
            value = focal_power(part.q, exponents(gamma, part.bucket, dtype=part.q.dtype)).mul_(part.loss)
        return value if kept is None else value * kept
    value = part.p if kind == "p" else part.p.square()
    return value if part.weight is None else value * part.weight


def _add_by_label(sums: Tensor, bucket: Tensor, values: Sequence[Tensor]) -> None:
    """Add K values `[B, p]` to `[K, B, C + 1]` in the bucket of each pixel."""
    if not values:
        return
    exact = torch.empty(len(values), *bucket.shape, dtype=torch.float64)
    for row, value in zip(exact, values, strict=True):
        row.copy_(value)
    sums.scatter_add_(2, bucket.expand(exact.shape), exact)


def _add_others(sums: Mapping[str, Tensor], part: Exponentials, chunk: Chunk) -> None:
    """Add the probabilities of the classes that are not the label. Squares e where squares are wanted."""
    weight = part.inverse if part.weight is None else part.inverse * part.weight
    if "probability" in sums:
        sums["probability"][chunk.images] += over_pixels(part.e, weight)
    if "squared_probability" in sums:
        sums["squared_probability"][chunk.images] += over_pixels(part.e.square_(), weight * part.inverse)


def _add_mined(
    sums: Tensor, kinds: list[str], losses: Tensor, mask: Tensor, pixels: Pixels, gamma: tuple[float, ...]
) -> None:
    """Replace the sums by those over the pixels that mining keeps, from the loss of each: q = 1 − e^{−ℓ}."""
    losses, mask, labels = losses.flatten(1), mask.flatten(1), pixels.labels.flatten(1)
    weight = None if pixels.weight is None else pixels.weight.flatten(1)
    for row, kind in enumerate(kinds):
        if kind in MINED:
            sums[row].zero_()
    step = max(TILE_PIXELS // max(len(losses), 1), 1)
    for start in range(0, losses.shape[1], step):
        tile = slice(start, start + step)
        bucket = torch.where(mask[:, tile], labels[:, tile], pixels.num_classes).long()
        for row, kind in enumerate(kinds):
            if kind not in MINED:
                continue
            value = losses[:, tile]
            if kind == "focal":
                exponent = exponents(gamma, bucket, dtype=value.dtype)
                value = focal_power(torch.expm1(-value).neg_(), exponent).mul_(value)
            value = value if weight is None else value * weight[:, tile]
            _add_by_label(sums[row : row + 1], bucket, [value])


def _add_log_mass(log_mass: Tensor, losses: Tensor, mask: Tensor, pixels: Pixels, buffer: Tensor) -> None:
    """Add Σ_i k_i (ℓ_i + x_iy − x_ic) over the mined pixels: a second read of the logits, without exponentials."""
    for chunk in pixels.chunks():
        keep = pixels_of(mask, chunk)
        labels = torch.where(keep, pixels_of(pixels.labels, chunk), pixels.num_classes)
        e = pixels.in_buffer(buffer, chunk)
        scores = load(pixels.logits, chunk, dtype=pixels.dtype, out=e).masked_fill(~keep.unsqueeze(1), 0.0)
        scores = shifted(pixels, scores, labels, out=e)
        weight = None if pixels.weight is None else pixels_of(pixels.weight, chunk)
        log_mass[chunk.images] += mass(scores, pixels_of(losses, chunk), labels, weight)


def backward(grads: Mapping[str, Tensor], inputs: Inputs, request: Request) -> Tensor:
    """Return the gradient of the logits, in their type and layout, given that of each sum: float64 `[N, C]`.

    A sum whose gradient is not given costs nothing.
    """
    result = empty_like(inputs.logits)
    if not grads:
        return result.zero_()
    pixels = Pixels.prepare(inputs, request)
    # scale · z is what the softmax sees; the last column is what ignored pixels get
    slopes = {name: pad(grad * request.scale, (0, 1)).to(pixels.dtype) for name, grad in grads.items()}
    rows = few_rows(result) if pixels.logits.shape != inputs.logits.shape else result
    buffer: Tensor | None = None
    for chunk in pixels.chunks():
        local = {name: slope[chunk.images] for name, slope in slopes.items()}
        of_mass = local["probability"][:, :-1] if "probability" in local else None
        place = rows[chunk.images, :, chunk.rows, chunk.columns]
        if is_plain(place, pixels.dtype):  # the exponentials stand where the gradient will be
            _turn_into_gradient(read(pixels, chunk, place[:, :, 0], slopes=of_mass), local, request.gamma)
            continue
        buffer = pixels.buffer() if buffer is None else buffer
        e = pixels.in_buffer(buffer, chunk)
        _turn_into_gradient(read(pixels, chunk, e, slopes=of_mass), local, request.gamma)
        place.copy_(e.view(place.shape))
    return result


def _turn_into_gradient(part: Exponentials, slopes: Mapping[str, Tensor], gamma: tuple[float, ...]) -> None:
    """Put dz in place of e: for the other classes p_c times a coefficient, for the label a value of its own.

    dz = s (p − δ_y) + p ∘ f (g − ⟨p, g⟩) + k [(ΣG_log) p − G_log], in which f is what a pixel counts, k the same for
    the pixel terms, g_c = G_prob[c] + G_inter[c] [c=y] + 2 G_sq[c] p_c and s as in `_pixel_slope`.
    """
    num_classes = part.e.shape[1]
    first, second, log = (slopes.get(name) for name in ("probability", "squared_probability", "log_mass"))
    right = torch.empty(len(part.p), 2, part.p.shape[1], dtype=part.p.dtype)
    weight, scaled = right.unbind(1)  # f / Σe, and what p_c is multiplied with, / Σe
    torch.mul(part.inverse, 1.0 if part.weight is None else part.weight, out=weight)
    coefficient, at_label = _coefficients(part, slopes, gamma, weight)
    if log is not None:
        kept = (part.bucket < num_classes) * (torch.ones_like(part.p) if part.kept is None else part.kept)
        of_mass = log.sum(1, keepdim=True) * kept
        coefficient += of_mass
        at_label += of_mass * part.p - kept * _at(log, part.bucket)
    torch.mul(coefficient, part.inverse, out=scaled)
    squares = None if second is None else part.e.square()
    if first is None:
        part.e.mul_(scaled.unsqueeze(1))
    else:
        left = torch.stack((first[:, :num_classes], torch.ones_like(first[:, :num_classes])), dim=2)
        part.e.mul_(torch.matmul(left, right))
    if second is not None and squares is not None:
        squares.mul_((weight * part.inverse).unsqueeze(1))
        part.e.addcmul_(squares, 2 * second[:, :num_classes, None])
    if log is not None:
        part.e.sub_(log[:, :num_classes, None] * kept.unsqueeze(1))
    part.e.scatter_(1, part.index.unsqueeze(1), at_label.unsqueeze(1))


def _coefficients(
    part: Exponentials, slopes: Mapping[str, Tensor], gamma: tuple[float, ...], weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return s − f ⟨p, g⟩, what each p_c is multiplied with, and dz_y, `[B, p]`, both but for log_mass; new tensors."""
    slope = _pixel_slope(part, slopes, gamma)
    at_label = torch.zeros_like(part.q) if slope is None else -slope * part.q
    coefficient = torch.zeros_like(part.q) if slope is None else slope
    if {"probability", "squared_probability", "intersection"} & slopes.keys():
        others, of_label = _inner(part, slopes, weight)
        # f (g_y − ⟨p, g⟩) by q = 1 − p_y: the plain difference would lose the slope of a pixel that is all but certain
        at_label.addcmul_(part.p, torch.addcmul(-others, of_label, part.q))
        coefficient -= others.addcmul_(of_label, part.p)
    return coefficient, at_label


def _inner(part: Exponentials, slopes: Mapping[str, Tensor], weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return f Σ_{j≠y} p_j g_j and f g_y, `[B, p]`, new tensors; weight is f / Σe."""
    num_classes = part.e.shape[1]
    second = slopes.get("squared_probability")
    tables = [slopes[name] for name in ("probability", "intersection") if name in slopes]
    of_label = _at(sum(tables[1:], tables[0]), part.bucket) if tables else torch.zeros_like(part.p)
    others = torch.zeros_like(part.p) if part.weighted is None else part.weighted * weight
    if second is not None:
        of_label = of_label + 2 * _at(second, part.bucket) * part.p
        squares = torch.matmul(second[:, None, :num_classes], part.e.square()).squeeze(1)
        others += 2 * squares * weight * part.inverse
    if part.weight is not None:
        of_label = of_label * part.weight
    return others, of_label


def _pixel_slope(part: Exponentials, slopes: Mapping[str, Tensor], gamma: tuple[float, ...]) -> Tensor | None:
    """Return s = k (G_ce[y] + G_focal[y] q^γ (1 + γ p ℓ/q)), or None without these terms; ℓ/q → 1 as q → 0."""
    slope = None
    if "cross_entropy" in slopes:
        slope = _at(slopes["cross_entropy"], part.bucket)
    if "focal" in slopes:
        of_focal = focal_slope(part.loss, part.p, part.q, exponents(gamma, part.bucket, dtype=part.q.dtype))
        of_focal.mul_(_at(slopes["focal"], part.bucket))
        slope = of_focal if slope is None else slope.add_(of_focal)
    return slope if slope is None or part.kept is None else slope.mul_(part.kept)


def _at(table: Tensor, bucket: Tensor) -> Tensor:
    """Return what `[B, C + 1]` holds at the bucket of each pixel, `[B, p]`."""
    if len(table) == 1:  # twice as fast as gather
        return table[0].index_select(0, bucket[0]).unsqueeze(0)
    return table.gather(1, bucket)
