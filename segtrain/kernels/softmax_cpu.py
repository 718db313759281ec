"""The softmax class sums on a CPU, forward and backward, in chunks: nothing of the size of the logits but the gradient.

The notation is that of `Exponentials`; the backward takes the exponentials anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from segtrain.kernels.at_label import at_label, product
from segtrain.kernels.chunks import Chunk, few_rows, is_plain, load, pixels_of
from segtrain.kernels.focal import exponents, focal_power, focal_slope
from segtrain.kernels.labels import check_labels, count
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
MASS = ("probability", "intersection")
TILE_PIXELS = 2**16


def forward(inputs: Inputs, request: Request) -> tuple[Tensor, Tensor, Tensor]:
    """Return the wanted sums `[K, N, C]`, the counts (pixels, kept) `[2, N, C]`, both float64, and the mined mask.

    The mask is bool in the shape of the target where `request.mining` says so, else empty.

    Raises:
        DataError: a label out of range.
    """
    num_classes = inputs.logits.shape[1]
    check_labels(inputs.target, num_classes=num_classes, ignore_index=request.ignore_index)
    pixels = Pixels.prepare(inputs, request)
    counts = count(pixels.labels.flatten(1), num_buckets=num_classes, weight=None)
    sums = {name: torch.zeros_like(counts) for name in request.wanted}
    kinds = sorted({BY_LABEL[name] for name in request.wanted if name in BY_LABEL})
    rule = request.rule
    mined = None if rule is None else MinedRead(rule, pixels.labels.shape, dtype=pixels.dtype)
    by_label = torch.zeros(len(kinds), *counts.shape, dtype=torch.float64)
    buffer = pixels.buffer()
    log_mass = sums.get("log_mass") if mined is None else None
    for chunk in pixels.chunks() if request.wanted or mined is not None else ():
        part = read(pixels, chunk, pixels.in_buffer(buffer, chunk), log_mass=log_mass)
        kept = part.kept if mined is None else _take(mined, chunk, part)
        if kinds:
            by_label[:, chunk.images] += part.labels.sums(_values(kinds, part, kept, request.gamma))
        _add_others(sums, part, chunk)
    keep = pixels.keep
    if mined is None:
        counts_kept = _counts(counts, pixels, keep)
    else:
        keep, counts_kept = _settle(mined, by_label, kinds, counts, pixels, request.gamma)
        if "log_mass" in sums:
            _add_log_mass(sums["log_mass"], mined.losses, keep, pixels, buffer)
    for name in sums:
        if name in BY_LABEL:
            sums[name] += by_label[kinds.index(BY_LABEL[name])]
    stacked = torch.stack(list(sums.values())) if sums else counts.new_zeros(0, *counts.shape)
    mask = torch.empty(0, dtype=torch.bool) if mined is None or keep is None else keep.view(inputs.target.shape)
    return stacked, torch.stack((_counts(counts, pixels, None), counts_kept)), mask


def _take(mined: MinedRead, chunk: Chunk, part: Exponentials) -> Tensor:
    """Return what each pixel of a chunk counts in the pixel terms, `[B, p]`, as far as mining knows yet."""
    kept = mined.take((chunk.images, chunk.rows, chunk.columns), part.loss)
    return kept if part.weight is None else kept * part.weight


def _settle(
    mined: MinedRead, by_label: Tensor, kinds: list[str], counts: Tensor, pixels: Pixels, gamma: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Return the final mask, and `_counts` of it; where the read took another, make the sums of the mined pixels anew.

    The mask that the read took is counted once, for the rule and for the result.
    """
    num_classes = pixels.num_classes
    taken = cache(lambda: _count_kept(pixels, mined.mask))
    mask = mined.finish(counts.sum(), lambda: taken().sum(), lambda: pixels.labels, num_buckets=num_classes)
    if not mined.was_right:
        _add_mined(by_label, kinds, mined.losses, mask, pixels, gamma)
    return mask, taken() if mined.was_right and pixels.weight is None else _counts(counts, pixels, mask)


def _counts(counts: Tensor, pixels: Pixels, kept: Tensor | None) -> Tensor:
    """Return the pixels of each class that are kept, or the sums of their weights, `[N, C]`; `counts` are of all."""
    weight = None if pixels.weight is None else pixels.weight.flatten(1)
    if kept is not None:
        return _count_kept(pixels, kept, weight)
    return counts if weight is None else count(pixels.labels.flatten(1), num_buckets=pixels.num_classes, weight=weight)


def _count_kept(pixels: Pixels, kept: Tensor, weight: Tensor | None = None) -> Tensor:
    """Count the pixels of each class that are kept, or sum their weights `[N, P]`: `[N, C]`."""
    num_classes = pixels.num_classes
    # those that are not go to bucket `num_classes`, by arithmetic: fast with bytes
    buckets = num_classes - (num_classes - pixels.labels) * kept.view(torch.uint8)
    return count(buckets.flatten(1), num_buckets=num_classes, weight=weight)


def _values(kinds: list[str], part: Exponentials, kept: Tensor | None, gamma: tuple[float, ...]) -> list[Tensor]:
    """Return what each kind of sum adds up, `[B, p]`; anything finite where ignored, for sums by label drop it."""
    loss = part.loss if kept is None or not set(kinds) & set(MINED) else part.loss * kept
    values = []
    for kind in kinds:
        if kind == "cross_entropy":
            values.append(loss)
        elif kind == "focal":
            values.append(focal_power(part.q, exponents(gamma, part.labels, dtype=part.q.dtype)).mul_(loss))
        else:
            value = part.p if kind == "p" else part.p.square()
            values.append(value if part.weight is None else value * part.weight)
    return values


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
        buckets = torch.where(mask[:, tile], labels[:, tile], pixels.num_classes)
        of_tile = at_label(buckets, num_classes=pixels.num_classes, dtype=losses.dtype)
        for row, kind in enumerate(kinds):
            if kind not in MINED:
                continue
            value = losses[:, tile]
            if kind == "focal":
                exponent = exponents(gamma, of_tile, dtype=value.dtype)
                value = focal_power(torch.expm1(-value).neg_(), exponent).mul_(value)
            value = value if weight is None else value * weight[:, tile]
            sums[row] += of_tile.sums([value])[0]


def _add_log_mass(log_mass: Tensor, losses: Tensor, mask: Tensor, pixels: Pixels, buffer: Tensor) -> None:
    """Add Σ_i k_i (ℓ_i + x_iy − x_ic) over the mined pixels: a second read of the logits, without exponentials."""
    for chunk in pixels.chunks():
        keep = pixels_of(mask, chunk)
        buckets = torch.where(keep, pixels_of(pixels.labels, chunk), pixels.num_classes)
        labels = at_label(buckets, num_classes=pixels.num_classes, dtype=pixels.dtype)
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
    # scale · z is what the softmax sees
    slopes = {name: (grad * request.scale).to(pixels.dtype) for name, grad in grads.items()}
    rows = few_rows(result) if pixels.logits.shape != inputs.logits.shape else result
    buffer: Tensor | None = None
    # fresh memory for each chunk would cost page faults
    scratch = pixels.buffer(num_classes=_few(pixels.num_classes)) if "probability" in slopes else None
    for chunk in pixels.chunks():
        local = {name: slope[chunk.images] for name, slope in slopes.items()}
        of_mass = local.get("probability")
        spare = None if scratch is None else pixels.in_buffer(scratch, chunk, num_classes=_few(pixels.num_classes))
        place = rows[chunk.images, :, chunk.rows, chunk.columns]
        if is_plain(place, pixels.dtype):  # the exponentials stand where the gradient will be
            part = read(pixels, chunk, place[:, :, 0], slopes=of_mass)
            _turn_into_gradient(part, local, request.gamma, spare)
            continue
        buffer = pixels.buffer() if buffer is None else buffer
        e = pixels.in_buffer(buffer, chunk)
        _turn_into_gradient(read(pixels, chunk, e, slopes=of_mass), local, request.gamma, spare)
        place.copy_(e.view(place.shape))
    return result


def _turn_into_gradient(
    part: Exponentials, slopes: Mapping[str, Tensor], gamma: tuple[float, ...], spare: Tensor | None
) -> None:
    """Put dz in place of e: for the other classes p_c times a coefficient, for the label a value of its own.

    `spare` is memory for `_few` of the classes of e, needed for a gradient of the probabilities.

    dz = s (p − δ_y) + p ∘ f (g − ⟨p, g⟩) + k [(ΣG_log) p − G_log], in which f is what a pixel counts, k the same for
    the pixel terms, g_c = G_prob[c] + G_inter[c] [c=y] + 2 G_sq[c] p_c and s as in `_pixel_slope`.
    """
    first, second, log = (slopes.get(name) for name in ("probability", "squared_probability", "log_mass"))
    weight = part.inverse if part.weight is None else part.inverse * part.weight  # f / Σe
    of_label = _look_up(part, slopes)
    coefficient, at_label = _coefficients(part, slopes, of_label, gamma, weight)
    if log is not None:
        kept = 1 - part.labels.ignored
        kept = kept if part.kept is None else kept.mul_(part.kept)
        of_mass = log.sum(1, keepdim=True) * kept
        coefficient += of_mass
        at_label += of_mass * part.p - kept * of_label["log_mass"]
    squares = None if second is None else part.e.square()
    scaled = coefficient.mul_(part.inverse)
    if first is None or spare is None:
        part.e.mul_(scaled.unsqueeze(1))
    else:
        left, right = torch.stack((first, torch.ones_like(first)), dim=2), torch.stack((weight, scaled), dim=1)
        few = spare.shape[1]
        for some, rows in zip(torch.split(part.e, few, dim=1), torch.split(left, few, dim=1), strict=True):
            some.mul_(product(rows, right, out=spare[:, : rows.shape[1]]))
    if second is not None and squares is not None:
        squares.mul_((weight * part.inverse).unsqueeze(1))
        part.e.addcmul_(squares, 2 * second.unsqueeze(2))
    if log is not None:
        others = log.unsqueeze(2) * kept.unsqueeze(1)
        part.labels.take_out(others)
        part.e.sub_(others)
    part.labels.put(part.e, at_label)


def _few(num_classes: int) -> int:
    """Return of how many classes a factor for each pixel is held at a time: half of them, to hold half as much."""
    return -(-num_classes // 2)


def _look_up(part: Exponentials, slopes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what the slopes hold at the label of each pixel, `[B, p]`: of both of the first two as "mass"."""
    tables = {name: slope for name, slope in slopes.items() if name not in MASS}
    mass = [slopes[name] for name in MASS if name in slopes]
    if mass:
        tables["mass"] = sum(mass[1:], mass[0])
    return dict(zip(tables, part.labels.look_up(torch.stack(list(tables.values()), dim=1)), strict=True))


def _coefficients(
    part: Exponentials,
    slopes: Mapping[str, Tensor],
    of_label: Mapping[str, Tensor],
    gamma: tuple[float, ...],
    weight: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return s − f ⟨p, g⟩, what each p_c is multiplied with, and dz_y, `[B, p]`, both but for log_mass; new tensors."""
    slope = _pixel_slope(part, of_label, gamma)
    slope = torch.zeros_like(part.q) if slope is None else slope
    if not {*MASS, "squared_probability"} & slopes.keys():
        return slope, (slope * part.q).neg_()
    others, own = _inner(part, slopes.get("squared_probability"), of_label, weight)
    # f (g_y − ⟨p, g⟩) by q = 1 − p_y: the plain difference would lose the slope of a pixel that is all but certain
    gain = torch.mul(own, part.q).sub_(others)
    at_label = torch.mul(gain, part.p).addcmul_(slope, part.q, value=-1)
    return slope.sub_(others).addcmul_(own, part.p, value=-1), at_label


def _inner(
    part: Exponentials, second: Tensor | None, of_label: Mapping[str, Tensor], weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return f Σ_{j≠y} p_j g_j, a new tensor, and f g_y, `[B, p]`; weight is f / Σe."""
    own = of_label.get("mass")
    others = torch.zeros_like(part.p) if part.weighted is None else part.weighted.mul_(weight)
    if second is not None:
        of_square = 2 * of_label["squared_probability"] * part.p
        own = of_square if own is None else own + of_square
        squares = product(second.unsqueeze(1), part.e.square()).squeeze(1)
        others += 2 * squares * weight * part.inverse
    assert own is not None
    return others, own if part.weight is None else own * part.weight


def _pixel_slope(part: Exponentials, of_label: Mapping[str, Tensor], gamma: tuple[float, ...]) -> Tensor | None:
    """Return s = k (G_ce[y] + G_focal[y] q^γ (1 + γ p ℓ/q)), or None without these terms; ℓ/q → 1 as q → 0."""
    slope = of_label.get("cross_entropy")
    if "focal" in of_label:
        of_focal = focal_slope(part.loss, part.p, part.q, exponents(gamma, part.labels, dtype=part.q.dtype))
        of_focal.mul_(of_label["focal"])
        slope = of_focal if slope is None else slope.add_(of_focal)
    return slope if slope is None or part.kept is None else slope.mul_(part.kept)
