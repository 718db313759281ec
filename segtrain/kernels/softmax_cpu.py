"""The softmax class sums on a CPU, forward and backward, in chunks that stay in the cache.

Notation of a chunk of B images and p pixels: e = exp(z − max z) `[B, C, p]`, with 0 in place of the label's, whose
value is kept apart; others = Σ_{j≠y} e_j, total = others + e_y; f the factor of a pixel (its weight, 0 where ignored),
k the same for the pixel terms, which mining masks. q = 1 − p_y = others / total is a sum of its own: the difference
would round to 0 near a certain label. The backward makes e anew: nothing of the size of the logits is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from segtrain.kernels.chunks import Chunk, buffer_for, chunks, few_rows, load, pixels_of, shaped
from segtrain.kernels.labels import count, narrow
from segtrain.kernels.request import Inputs, Request

BY_LABEL = {
    "probability": "label",
    "intersection": "label",
    "squared_probability": "label_squared",
    "cross_entropy": "cross_entropy",
    "focal": "focal",
}


@dataclass(frozen=True, eq=False)
class _Batch:
    """The inputs as rows of pixels, and what holds for all chunks."""

    logits: Tensor  # [N, C, rows, columns]
    labels: Tensor  # [N, rows, columns], `num_classes` where ignored
    any_ignored: bool
    weight: Tensor | None  # [N, rows, columns]
    keep: Tensor | None  # bool, the same
    shift: Tensor | None  # [C, 1]
    margin: Tensor | None  # [C]
    scale: float
    dtype: torch.dtype

    @classmethod
    def prepare(cls, inputs: Inputs, request: Request) -> _Batch:
        logits = few_rows(inputs.logits)
        shape = (logits.shape[0], *logits.shape[2:])
        dtype = torch.promote_types(logits.dtype, torch.float32)
        num_classes = logits.shape[1]
        labels = narrow(inputs.target, num_classes=num_classes, ignore_index=request.ignore_index).reshape(shape)
        ignored = labels == request.ignore_index
        any_ignored = bool(ignored.any())
        if any_ignored and request.ignore_index != num_classes:
            labels = labels.masked_fill(ignored, num_classes)
        weight, keep, shift, margin = inputs.pixel_weight, inputs.keep, inputs.shift, inputs.margin
        return cls(
            logits=logits,
            labels=labels,
            any_ignored=any_ignored,
            weight=None if weight is None else weight.reshape(shape),
            keep=None if keep is None else keep.reshape(shape),
            shift=None if shift is None else shift.to(dtype).view(-1, 1),
            margin=None if margin is None else margin.to(dtype),
            scale=request.scale,
            dtype=dtype,
        )

    def chunks(self) -> Iterator[Chunk]:
        return chunks(*self.logits.shape)


@dataclass(frozen=True, eq=False)
class _Softmax:
    """A chunk after its one exponential; `[B, p]` where not said otherwise."""

    e: Tensor  # [B, C, p], 0 at the label
    label_score: Tensor  # z_y − max z
    label_e: Tensor
    others: Tensor
    total: Tensor
    index: Tensor  # int64, the label, 0 where ignored
    bucket: Tensor  # int64, the label, C where ignored
    factor: Tensor | None  # f, None for 1
    kept: Tensor | None  # k, None for 1

    @property
    def q(self) -> Tensor:
        return self.others / self.total

    @property
    def p(self) -> Tensor:
        return self.label_e / self.total

    @property
    def loss(self) -> Tensor:
        """−log p_y: log1p(others / e_y) for a likely label, log Σ − z_y for an unlikely one, exact for both."""
        likely = torch.log1p(self.others / self.label_e)
        return torch.where(self.others < self.label_e, likely, self.total.log() - self.label_score)


def forward(inputs: Inputs, request: Request) -> tuple[Tensor, Tensor, Tensor]:
    """Return the wanted sums `[K, N, C]`, the counts (pixels, kept) `[2, N, C]`, both float64, and the mined mask.

    The mask is bool in the shape of the target where `request.mining` says so, else empty.
    """
    batch = _Batch.prepare(inputs, request)
    images, num_classes = batch.logits.shape[:2]
    sums = {name: torch.zeros(images, num_classes, dtype=torch.float64) for name in request.wanted}
    kinds = sorted({BY_LABEL[name] for name in request.wanted if name in BY_LABEL})
    by_label = torch.zeros(len(kinds), images, num_classes + 1, dtype=torch.float64)
    rule = request.rule
    losses = None if rule is None else torch.empty(batch.labels.shape, dtype=batch.dtype)
    buffer = buffer_for(batch.logits, batch.dtype)
    needs_softmax = bool(request.wanted) or rule is not None
    for chunk in batch.chunks() if needs_softmax else ():
        part = _softmax(batch, chunk, buffer, sums["log_mass"] if "log_mass" in sums and rule is None else None)
        loss = part.loss
        if losses is not None:
            losses[chunk.images, chunk.rows, chunk.columns] = loss.view(losses[chunk].shape)
        values = [_by_label(kind, part, loss, request.gamma, mined=rule is not None) for kind in kinds]
        if values:
            rows = by_label[:, chunk.images]
            rows.scatter_add_(2, part.bucket.expand(len(kinds), *part.bucket.shape), torch.stack(values).double())
        _add_probabilities(sums, part, chunk)
    flat = batch.labels.flatten(1)
    mask = torch.empty(0, dtype=torch.bool)
    if rule is not None:
        assert losses is not None
        mask = rule(losses.flatten(1), flat, num_buckets=num_classes)
        _add_mined(by_label, kinds, losses.flatten(1), flat, mask, batch=batch, request=request)
        if "log_mass" in sums:
            _add_log_mass(sums["log_mass"], batch, losses, mask, buffer)
    for name in sums:
        if name in BY_LABEL:
            sums[name] += by_label[kinds.index(BY_LABEL[name]), :, :num_classes]
    weight = None if batch.weight is None else batch.weight.flatten(1)
    pixels = count(flat, num_buckets=num_classes, weight=weight)
    keep = mask if rule is not None else batch.keep
    kept = pixels
    if keep is not None:
        kept_labels = flat.long().masked_fill(~keep.reshape(flat.shape), num_classes)
        kept = count(kept_labels, num_buckets=num_classes, weight=weight)
    stacked = torch.stack(list(sums.values())) if sums else torch.zeros(0, images, num_classes, dtype=torch.float64)
    return stacked, torch.stack((pixels, kept)), mask.view(inputs.target.shape) if rule is not None else mask


def _softmax(batch: _Batch, chunk: Chunk, buffer: Tensor, log_mass: Tensor | None = None) -> _Softmax:
    """Take the exponentials of a chunk; add its `log_mass` on the way, where the scores are still at hand."""
    bucket = pixels_of(batch.labels, chunk).long()
    ignored = bucket == batch.logits.shape[1] if batch.any_ignored else None
    index = bucket if ignored is None else bucket.masked_fill(ignored, 0)
    factor = _factor(batch.weight, chunk, ignored, batch.dtype)
    kept = factor
    if batch.keep is not None:
        keep = pixels_of(batch.keep, chunk)
        kept = keep.to(batch.dtype) if factor is None else factor * keep
    scores = load(batch.logits, chunk, dtype=batch.dtype, buffer=buffer)
    at_label = index.unsqueeze(1)
    for _ in range(2):
        e = _centred(scores, batch, at_label, buffer)
        label_score = e.gather(1, at_label).squeeze(1)
        if ignored is not None:
            label_score.masked_fill_(ignored, 0.0)  # a loss of infinity would not vanish by a factor of 0
        shifted = e if log_mass is None else e.clone()
        e.exp_()
        label_e = label_score.exp()
        e.scatter_(1, at_label, torch.zeros((), dtype=batch.dtype).expand(at_label.shape))
        others = _over_classes(e)
        total = others + label_e
        part = _Softmax(e, label_score, label_e, others, total, index, bucket, factor, kept)
        mass = None if log_mass is None else _mass(shifted, label_score + part.loss, kept)
        if ignored is None or _is_finite(total) and (mass is None or _is_finite(mass)):
            break
        # NaN or inf under an ignored label, where a factor of 0 does not help: once more without these
        scores = _load_again(batch, chunk, ignored)
    if log_mass is not None:
        log_mass[chunk.images] += mass
    return part


def _centred(scores: Tensor, batch: _Batch, at_label: Tensor, buffer: Tensor) -> Tensor:
    """Return scale · (z + shift − margin at the label) less its maximum, in the buffer."""
    e = shaped(buffer, scores.shape)
    if batch.shift is not None:
        scores = torch.add(scores, batch.shift, out=e)
    if batch.margin is not None:
        scores = e.copy_(scores) if scores is not e else e
        scores.scatter_add_(1, at_label, -batch.margin[at_label])
    if batch.scale != 1:
        scores = torch.mul(scores, batch.scale, out=e)
    return torch.sub(scores, scores.amax(1, keepdim=True), out=e)


def _load_again(batch: _Batch, chunk: Chunk, ignored: Tensor) -> Tensor:
    part = batch.logits[chunk.images, :, chunk.rows, chunk.columns].flatten(2).to(batch.dtype)
    return part.masked_fill(ignored.unsqueeze(1), 0.0)


def _is_finite(values: Tensor) -> bool:
    return bool(values.sum().isfinite())


def _factor(weight: Tensor | None, chunk: Chunk, ignored: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if weight is None:
        return None if ignored is None else (~ignored).to(dtype)
    factor = pixels_of(weight, chunk).to(dtype)
    return factor if ignored is None else factor.masked_fill(ignored, 0.0)


def _over_classes(values: Tensor) -> Tensor:
    """Sum `[B, C, p]` over the classes, as a product: the fastest way there is in plain torch."""
    ones = torch.ones((), dtype=values.dtype).expand(len(values), 1, values.shape[1])
    return torch.matmul(ones, values).squeeze(1)


def _over_pixels(values: Tensor, factor: Tensor) -> Tensor:
    """Return Σ_i factor_i values_ci, `[B, C]`."""
    return torch.matmul(values, factor.unsqueeze(2)).squeeze(2)


def _mass(shifted: Tensor, log_total: Tensor, kept: Tensor | None) -> Tensor:
    """Return Σ_i k_i (log Σ_j e^{x_ij} − x_ic), `[B, C]`."""
    kept = torch.ones_like(log_total) if kept is None else kept
    return (log_total * kept).sum(1, keepdim=True).double() - _over_pixels(shifted, kept)


def _by_label(kind: str, part: _Softmax, loss: Tensor, gamma: tuple[float, ...], *, mined: bool) -> Tensor:
    """Return the values `[B, p]` that a kind of sum adds up by label; those that mining decides on come later."""
    if kind in ("cross_entropy", "focal"):
        if mined:
            return torch.zeros_like(loss)
        value = loss if kind == "cross_entropy" else focal_power(part.q, gamma, part.index) * loss
        return value if part.kept is None else value * part.kept
    value = part.p if kind == "label" else part.p.square()
    return value if part.factor is None else value * part.factor


def focal_power(q: Tensor, gamma: tuple[float, ...], index: Tensor) -> Tensor:
    """Return q^γ, with γ by the class of each pixel where there are several."""
    if len(gamma) > 1:
        return q.pow(torch.tensor(gamma, dtype=q.dtype)[index])
    return q.square() if gamma[0] == 2 else q.pow(gamma[0])


def _add_probabilities(sums: Mapping[str, Tensor], part: _Softmax, chunk: Chunk) -> None:
    """Add the probabilities of the classes that are not the label. Squares e in place where squares are wanted."""
    inverse = 1 / part.total
    factor = inverse if part.factor is None else inverse * part.factor
    if "probability" in sums:
        sums["probability"][chunk.images] += _over_pixels(part.e, factor)
    if "squared_probability" in sums:
        sums["squared_probability"][chunk.images] += _over_pixels(part.e.square_(), factor * inverse)


def _add_mined(
    by_label: Tensor,
    kinds: list[str],
    losses: Tensor,
    labels: Tensor,
    mask: Tensor,
    *,
    batch: _Batch,
    request: Request,
) -> None:
    """Add the sums over the pixels that mining keeps, from the loss of each: q = 1 − e^{−ℓ}."""
    num_classes = batch.logits.shape[1]
    weight = None if batch.weight is None else batch.weight.flatten(1)
    step = max(ELEMENTS_OF_PIXELS // max(len(losses), 1), 1)
    for start in range(0, losses.shape[1], step):
        tile = slice(start, start + step)
        bucket = labels[:, tile].long().masked_fill(~mask[:, tile], num_classes)
        for row, kind in enumerate(kinds):
            if kind not in ("cross_entropy", "focal"):
                continue
            value = losses[:, tile]
            if kind == "focal":
                index = bucket.clamp(max=num_classes - 1)
                value = focal_power(-torch.expm1(-value), request.gamma, index) * value
            value = value if weight is None else torch.where(bucket < num_classes, value * weight[:, tile], 0.0)
            by_label[row].scatter_add_(1, bucket, value.double())


ELEMENTS_OF_PIXELS = 2**16


def _add_log_mass(log_mass: Tensor, batch: _Batch, losses: Tensor, mask: Tensor, buffer: Tensor) -> None:
    """Add Σ_i k_i (ℓ_i + x_iy − x_ic) over the kept pixels: a second read of the logits, without exponentials."""
    keep = mask.view(batch.labels.shape)
    for chunk in batch.chunks():
        kept = pixels_of(keep, chunk).to(batch.dtype)
        kept = kept if batch.weight is None else torch.where(kept > 0, kept * pixels_of(batch.weight, chunk), 0.0)
        bucket = pixels_of(batch.labels, chunk).long()
        dropped = kept == 0
        at_label = bucket.masked_fill(dropped, 0).unsqueeze(1)
        scores = load(batch.logits, chunk, dtype=batch.dtype, buffer=buffer)
        e = _centred(scores.masked_fill(dropped.unsqueeze(1), 0.0), batch, at_label, buffer)
        label_score = e.gather(1, at_label).squeeze(1)
        loss = pixels_of(losses, chunk).masked_fill(dropped, 0.0)
        log_mass[chunk.images] += _mass(e, loss + label_score, kept.to(batch.dtype))


def backward(grads: Mapping[str, Tensor], inputs: Inputs, request: Request) -> Tensor:
    """Return the gradient of the logits, in their type and layout, given that of each sum: float64 `[N, C]`.

    A sum whose gradient is zero costs nothing.
    """
    batch = _Batch.prepare(inputs, request)
    result = torch.empty_like(inputs.logits)
    if not grads:
        return result.zero_()
    # scale · z is what the softmax sees; the last column is what ignored pixels get
    slopes = {
        name: torch.nn.functional.pad(grad * request.scale, (0, 1)).to(batch.dtype) for name, grad in grads.items()
    }
    rows = few_rows(result)
    if rows.shape != batch.logits.shape:
        rows = result
    buffer, spare = buffer_for(batch.logits, batch.dtype), None
    for chunk in batch.chunks():
        part = _softmax(batch, chunk, buffer)
        local = {name: slope[chunk.images] for name, slope in slopes.items()}
        place = rows[chunk.images, :, chunk.rows, chunk.columns]
        if place.dtype == batch.dtype and place.stride(-1) == 1 and place.shape[-2] == 1:
            _gradient(part, local, request.gamma, out=place[:, :, 0])
            continue
        spare = torch.empty_like(buffer) if spare is None else spare
        out = shaped(spare, part.e.shape)
        _gradient(part, local, request.gamma, out=out)
        place.copy_(out.view(place.shape))
    return result


def _gradient(part: _Softmax, slopes: Mapping[str, Tensor], gamma: tuple[float, ...], *, out: Tensor) -> None:
    """Write dz `[B, C, p]`: for the other classes p_c times a coefficient, for the label a value of its own.

    dz = s (p − δ_y) + p ∘ (g − ⟨p, g⟩) + k [(ΣG_log) p − G_log], with g and s as below.
    """
    inverse = 1 / part.total
    p, q = part.p, part.q
    of_pixel = _pixel_slope(part, slopes, gamma, p=p, q=q)
    coefficient = torch.zeros_like(p) if of_pixel is None else of_pixel
    at_label = torch.zeros_like(p) if of_pixel is None else -of_pixel * q
    num_classes = part.e.shape[1]
    first = slopes.get("probability")
    second = slopes.get("squared_probability")
    if first is not None or second is not None or "intersection" in slopes:
        inner = torch.zeros_like(p)  # ⟨p, g⟩
        label_slope = torch.zeros_like(p)  # g_y
        if first is not None:
            inner += torch.matmul(first[:, None, :num_classes], part.e).squeeze(1) * inverse
            label_slope += first.gather(1, part.bucket)
        if second is not None:
            squares = torch.matmul(second[:, None, :num_classes], part.e.square()).squeeze(1)
            inner += 2 * squares * inverse.square()
            label_slope += 2 * second.gather(1, part.bucket) * p
        if "intersection" in slopes:
            label_slope += slopes["intersection"].gather(1, part.bucket)
        inner += label_slope * p
        factor = 1 if part.factor is None else part.factor
        coefficient -= inner * factor
        at_label += p * (label_slope - inner) * factor
    mass = slopes.get("log_mass")
    if mass is not None:
        kept = torch.ones_like(p) if part.kept is None else part.kept
        of_mass = mass.sum(1, keepdim=True) * kept
        coefficient += of_mass
        at_label += of_mass * p - kept * mass.gather(1, part.bucket)
    _write(part, out, inverse, coefficient, first=first, second=second)
    if mass is not None:
        out.baddbmm_(mass[:, :num_classes, None], kept.unsqueeze(1), alpha=-1)
    out.scatter_(1, part.index.unsqueeze(1), at_label.unsqueeze(1))


def _write(
    part: _Softmax, out: Tensor, inverse: Tensor, coefficient: Tensor, *, first: Tensor | None, second: Tensor | None
) -> None:
    """Write p_c (f (G₁ + 2 G₂ p_c) + coefficient) for the classes that are not the label."""
    num_classes = part.e.shape[1]
    weight = inverse if part.factor is None else inverse * part.factor
    scaled = coefficient * inverse
    if first is None:
        torch.mul(part.e, scaled.unsqueeze(1), out=out)
    else:
        left = torch.stack((first[:, :num_classes], torch.ones_like(first[:, :num_classes])), dim=2)
        _product(left, torch.stack((weight, scaled), dim=1), out=out)
        out.mul_(part.e)
    if second is not None:
        slope = _product(2 * second[:, :num_classes, None], (weight * inverse).unsqueeze(1))
        out.add_(slope.mul_(part.e.square()))


def _product(left: Tensor, right: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Multiply `[B, C, k]` and `[B, k, p]`; of one image into rows of a larger tensor without a copy."""
    if out is None or len(left) > 1:
        return torch.matmul(left, right, out=out) if out is None or out.is_contiguous() else out.copy_(left @ right)
    torch.mm(left[0], right[0], out=out[0])
    return out


def _pixel_slope(
    part: _Softmax, slopes: Mapping[str, Tensor], gamma: tuple[float, ...], *, p: Tensor, q: Tensor
) -> Tensor | None:
    """Return s = k (G_ce[y] + G_focal[y] q^γ (1 + γ p ℓ/q)), or None without these terms; ℓ/q → 1 as q → 0."""
    slope = None
    if "cross_entropy" in slopes:
        slope = slopes["cross_entropy"].gather(1, part.bucket)
    if "focal" in slopes:
        of_focal = slopes["focal"].gather(1, part.bucket) * focal_slope(part.loss, p, q, gamma, part.index)
        slope = of_focal if slope is None else slope + of_focal
    if slope is None or part.kept is None:
        return slope
    return slope * part.kept


def focal_slope(loss: Tensor, p: Tensor, q: Tensor, gamma: tuple[float, ...], index: Tensor) -> Tensor:
    """Return q^γ (1 + γ p ℓ/q): what q^γ ℓ changes by with the log-odds, divided by q."""
    if len(gamma) == 1 and gamma[0] == 2:
        return q * (q + 2 * p * loss)
    exponent = torch.tensor(gamma, dtype=q.dtype)[index] if len(gamma) > 1 else gamma[0]
    ratio = torch.where(q > 0, loss / q, 1.0)
    return focal_power(q, gamma, index) * (1 + exponent * p * ratio)
