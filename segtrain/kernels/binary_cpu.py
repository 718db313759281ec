"""The class sums of two classes on a CPU, forward and backward: of softmax with C = 2, and of sigmoid for each class.

Both see a pixel through one number, the log-odds d against its label: q = σ(d), p = σ(−d), ℓ = log(1 + e^d). For
softmax d is the other class's logit less the label's; for sigmoid it is −z where the target is 1, and z where it is 0.
A chunk holds R rows (images, or images × classes) of p pixels; each sum is made apart for label 0 and label 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from segtrain.kernels.chunks import Chunk, chunks, few_rows
from segtrain.kernels.labels import check_labels, narrow
from segtrain.kernels.request import Inputs, Request

KINDS = {  # what each sum is made of: of the pixels with the label (p), without it (q)
    "probability": ("label", "other"),
    "squared_probability": ("label_squared", "other_squared"),
    "intersection": ("label",),
    "cross_entropy": ("cross_entropy",),
    "focal": ("focal",),
}
NO_LABEL = 2
LINEAR_THRESHOLD = 40.0  # beyond it log(1 + e^d) is d to the last digit of float64


@dataclass(frozen=True, eq=False)
class _Batch:
    logits: Tensor  # [N, C, rows, columns]
    target: Tensor  # [N, G, rows, columns]: G = 1 with softmax, C with sigmoid
    weight: Tensor | None  # [N, 1, rows, columns]
    keep: Tensor | None  # bool, as target
    shift: Tensor | None  # [G, 1]
    margin: Tensor | None  # [G, 2], by label
    any_ignored: bool
    request: Request
    dtype: torch.dtype

    @classmethod
    def prepare(cls, inputs: Inputs, request: Request) -> _Batch:
        logits = few_rows(inputs.logits)
        images, num_classes, rows, columns = logits.shape
        groups = num_classes if request.sigmoid else 1
        shape = (images, groups, rows, columns)
        target = narrow(inputs.target, num_classes=2, ignore_index=request.ignore_index).reshape(shape)
        any_ignored = bool((target == request.ignore_index).any())
        if any_ignored and request.ignore_index in (0, 1):  # the number of a label: it must not be taken for it below
            target = target.masked_fill(target == request.ignore_index, NO_LABEL)
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
            weight=None if weight is None else weight.reshape(images, 1, rows, columns),
            keep=None if keep is None else keep.reshape(shape),
            shift=shift,
            margin=margin,
            any_ignored=any_ignored,
            request=request,
            dtype=dtype,
        )

    def select(self, values: Tensor, chunk: Chunk) -> Tensor:
        """Return a chunk of `[N, G, rows, columns]` as `[B, G, p]`."""
        return values[chunk.images, :, chunk.rows, chunk.columns].flatten(2)


@dataclass(frozen=True, eq=False)
class _Odds:
    """A chunk: d and what its pixels count; `[B, G, p]`, is_label `[B, G, 2, p]`."""

    d: Tensor
    sign: Tensor  # what d changes by with the logits' difference: 1 for label 0, −1 for label 1, 0 where ignored
    is_label: Tensor
    weight: Tensor | None
    keep: Tensor | None


def forward(inputs: Inputs, request: Request) -> tuple[Tensor, Tensor, Tensor]:
    """Return the wanted sums `[K, N, C]`, the counts, and the mined mask, as `softmax_cpu.forward` does.

    With sigmoid there are as many sums again, over the negatives, and as counts pixels, kept, and both of negatives.
    """
    check_labels(inputs.target, num_classes=2, ignore_index=request.ignore_index)
    batch = _Batch.prepare(inputs, request)
    images, groups = batch.target.shape[:2]
    rule = request.rule
    kinds = tuple(sorted({kind for name in request.wanted for kind in KINDS[name]}))
    in_chunk = tuple(kind for kind in kinds if rule is None or kind not in ("cross_entropy", "focal"))
    sums = {kind: torch.zeros(images, groups, 2, dtype=torch.float64) for kind in ("count", "kept", *kinds)}
    losses = None if rule is None else torch.empty(batch.target.shape, dtype=batch.dtype)
    for chunk in chunks(*batch.logits.shape):
        part = _odds(batch, chunk)
        if losses is not None:
            place = losses[chunk.images, :, chunk.rows, chunk.columns]
            place.copy_(_softplus(part.d).view(place.shape))
        _add(sums, chunk, part, dict(zip(in_chunk, _values(batch, part, in_chunk), strict=True)))
    mask = torch.empty(0, dtype=torch.bool)
    if losses is not None:
        mask = _mine(batch, losses)
        sums["kept"].zero_()
        of_loss = tuple(kind for kind in kinds if kind not in in_chunk)
        for chunk in chunks(*batch.logits.shape):
            part = _odds(batch, chunk, keep=mask)
            loss = batch.select(losses, chunk)
            values = {"cross_entropy": loss}
            if "focal" in of_loss:
                values["focal"] = _power(-torch.expm1(-loss), _exponent(batch, part)) * loss
            _add(sums, chunk, part, {kind: values[kind] for kind in of_loss}, counts=("kept",))
        mask = mask.view(inputs.target.shape)
    gather = _of_sigmoid if request.sigmoid else _of_softmax
    names = [gather(sums, name) for name in ("count", "kept", *request.wanted)]
    counts, wanted = torch.cat(names[:2]), names[2:]
    empty = torch.zeros(0, images, batch.logits.shape[1], dtype=torch.float64)
    return torch.cat(wanted) if wanted else empty, counts, mask


def _odds(batch: _Batch, chunk: Chunk, *, keep: Tensor | None = None) -> _Odds:
    target = batch.select(batch.target, chunk)
    zero, one = target == 0, target == 1
    is_label = torch.stack((zero, one), dim=2).to(batch.dtype)
    sign = is_label[:, :, 0] - is_label[:, :, 1]
    part = batch.logits[chunk.images, :, chunk.rows, chunk.columns].to(batch.dtype)
    if batch.request.sigmoid:
        difference = part.flatten(2)
    else:
        difference = torch.sub(part[:, 1], part[:, 0]).flatten(1).unsqueeze(1)
    if batch.shift is not None:
        difference = difference + batch.shift
    d = difference * sign
    if batch.any_ignored and not d.sum().isfinite():  # NaN or inf under an ignored label
        d = difference.masked_fill(sign == 0, 0.0) * sign
    if batch.margin is not None:
        d += torch.matmul(batch.margin.unsqueeze(1), is_label).squeeze(2)
    if batch.request.scale != 1:
        d *= batch.request.scale
    weight = None if batch.weight is None else batch.select(batch.weight, chunk).to(batch.dtype)
    if weight is not None and batch.any_ignored:
        weight = torch.where(sign == 0, 0.0, weight)
    keep = batch.keep if keep is None else keep
    return _Odds(d, sign, is_label, weight, None if keep is None else batch.select(keep, chunk).to(batch.dtype))


def _softplus(d: Tensor) -> Tensor:
    return softplus(d, threshold=LINEAR_THRESHOLD)


def _exponent(batch: _Batch, part: _Odds) -> float | Tensor:
    """Return γ: a number, or `[B, G, p]` (or what broadcasts to it) where classes have their own."""
    gamma = batch.request.gamma
    if len(gamma) == 1:
        return gamma[0]
    of_classes = torch.tensor(gamma, dtype=batch.dtype)
    if batch.request.sigmoid:
        return of_classes.view(1, -1, 1)
    return torch.matmul(of_classes.view(1, 1, 1, 2), part.is_label).squeeze(2)


def _power(q: Tensor, exponent: float | Tensor) -> Tensor:
    return q.square() if isinstance(exponent, float) and exponent == 2 else q.pow(exponent)


def _values(batch: _Batch, part: _Odds, kinds: tuple[str, ...]) -> list[Tensor]:
    """Return the values `[B, G, p]` that each kind of sum adds up."""
    d = part.d
    p = torch.sigmoid(-d) if "label" in kinds or "label_squared" in kinds else d
    q = torch.sigmoid(d) if {"other", "other_squared", "focal"} & set(kinds) else d
    loss = _softplus(d) if "cross_entropy" in kinds or "focal" in kinds else d
    makers = {
        "label": lambda: p,
        "other": lambda: q,
        "label_squared": lambda: p.square(),
        "other_squared": lambda: q.square(),
        "cross_entropy": lambda: loss,
        "focal": lambda: _power(q, _exponent(batch, part)).mul_(loss),
    }
    return [makers[kind]() for kind in kinds]


def _add(
    sums: Mapping[str, Tensor],
    chunk: Chunk,
    part: _Odds,
    values: Mapping[str, Tensor],
    counts: tuple[str, ...] = ("count", "kept"),
) -> None:
    """Add values `[B, G, p]`, and what their pixels count, by label to `[N, G, 2]`."""
    for name in counts:
        factor = _factor(part, masked=name == "kept")
        total = part.is_label.sum(3) if factor is None else _by_label(part, factor)
        sums[name][chunk.images] += total
    for kind, value in values.items():
        factor = _factor(part, masked=kind in ("cross_entropy", "focal"))
        sums[kind][chunk.images] += _by_label(part, value if factor is None else value * factor)


def _factor(part: _Odds, *, masked: bool) -> Tensor | None:
    """Return what each pixel counts, None for 1; `masked` by mining."""
    if not masked or part.keep is None:
        return part.weight
    return part.keep if part.weight is None else part.keep * part.weight


def _by_label(part: _Odds, values: Tensor) -> Tensor:
    return torch.matmul(part.is_label, values.unsqueeze(3)).squeeze(3)


def _mine(batch: _Batch, losses: Tensor) -> Tensor:
    """Return the mask of the rule: classes are the labels with softmax, and with sigmoid each class's 0 and 1."""
    groups = batch.target.shape[1]
    first = 2 * torch.arange(groups).view(1, -1, 1, 1)
    ignored = (batch.target != 0) & (batch.target != 1)
    buckets = (batch.target.long() + first).masked_fill(ignored, 2 * groups)
    rule = batch.request.rule
    assert rule is not None
    return rule(losses, buckets, num_buckets=2 * groups)


def _of_softmax(sums: Mapping[str, Tensor], name: str) -> Tensor:
    """Return `[1, N, 2]`: the other class of a pixel is the one that its label is not."""
    if name not in KINDS:
        return sums[name][:, 0].unsqueeze(0)
    kinds = KINDS[name]
    total = sums[kinds[0]][:, 0]
    return (total + sums[kinds[1]][:, 0].flip(1) if len(kinds) > 1 else total).unsqueeze(0)


def _of_sigmoid(sums: Mapping[str, Tensor], name: str) -> Tensor:
    """Return `[1 or 2, N, C]`: positives, and where the sum has them, negatives."""
    if name not in KINDS:
        return sums[name].permute(2, 0, 1).flip(0)
    kinds = KINDS[name]
    if len(kinds) > 1:
        return (sums[kinds[0]][..., 1] + sums[kinds[1]][..., 0]).unsqueeze(0)
    return sums[kinds[0]].permute(2, 0, 1).flip(0)[: 1 if name == "intersection" else 2]


def backward(grads: Mapping[str, Tensor], inputs: Inputs, request: Request) -> Tensor:
    """Return the gradient of the logits, in their type and layout, given that of each sum, float64 `[N, C]`.

    With sigmoid, those of the negatives are named `..._negatives`. A sum whose gradient is zero costs nothing.
    """
    batch = _Batch.prepare(inputs, request)
    result = torch.empty_like(inputs.logits)
    slopes = {name: slope.to(batch.dtype) for name, slope in _slopes(grads, request, batch.target.shape[1]).items()}
    if not slopes:
        return result.zero_()
    rows = few_rows(result) if batch.logits.shape != inputs.logits.shape else result
    for chunk in chunks(*batch.logits.shape):
        part = _odds(batch, chunk)
        slope = _gradient(batch, part, {name: value[chunk.images] for name, value in slopes.items()})
        place = rows[chunk.images, :, chunk.rows, chunk.columns]
        if request.sigmoid:
            place.copy_(slope.view(place.shape))
        else:
            shape = place[:, 1].shape
            place[:, 1].copy_(slope.view(shape))
            torch.neg(slope.view(shape), out=place[:, 0]) if place.dtype == slope.dtype else place[:, 0].copy_(
                slope.neg_().view(shape)
            )
    return result


def _slopes(grads: Mapping[str, Tensor], request: Request, groups: int) -> dict[str, Tensor]:
    """Return by kind of sum what it changes the result by, `[N, G, 2]` by label."""
    slopes: dict[str, Tensor] = {}
    for name, grad in grads.items():
        of_label = _by_sign(grad, name, request)
        for kind in KINDS[name.removesuffix("_negatives")][:1]:
            slopes[kind] = slopes.get(kind, 0.0) + of_label
        for kind in KINDS[name.removesuffix("_negatives")][1:]:
            others = _of_others(grad, request)
            slopes[kind] = slopes.get(kind, 0.0) + others
    return {kind: slope * request.scale for kind, slope in slopes.items()}


def _by_sign(grad: Tensor, name: str, request: Request) -> Tensor:
    """Return what a pixel's own label adds to a sum: with sigmoid, only label 1 (or 0 for the negatives) does."""
    if not request.sigmoid:
        return grad.unsqueeze(1)
    pair = (grad, torch.zeros_like(grad)) if name.endswith("_negatives") else (torch.zeros_like(grad), grad)
    return torch.stack(pair, dim=2)


def _of_others(grad: Tensor, request: Request) -> Tensor:
    """Return what a pixel adds to the sum of the class that is not its label."""
    if not request.sigmoid:
        return grad.flip(1).unsqueeze(1)
    return torch.stack((grad, torch.zeros_like(grad)), dim=2)


def _gradient(batch: _Batch, part: _Odds, slopes: Mapping[str, Tensor]) -> Tensor:
    """Return the gradient of the logits' difference, `[B, G, p]`: with dq/dd = p q, dp/dd = −p q, dℓ/dd = q."""
    d = part.d
    q, p = torch.sigmoid(d), torch.sigmoid(-d)
    result: Tensor | None = None
    if "cross_entropy" in slopes:
        result = _at(part, slopes["cross_entropy"])
    if "focal" in slopes:
        exponent = _exponent(batch, part)
        loss = _softplus(d)
        if isinstance(exponent, float) and exponent == 2:
            change = q * (q + 2 * p * loss)
        else:
            change = _power(q, exponent) * (1 + exponent * p * torch.where(q > 0, loss / q, 1.0))
        change.mul_(_at(part, slopes["focal"]))
        result = change if result is None else result.add_(change)
    if result is not None and part.keep is not None:
        result.mul_(part.keep)
    first = _difference(slopes, "other", "label")
    if first is not None:
        of_mass = _at(part, first).mul_(p)
        result = of_mass if result is None else result.add_(of_mass)
    for kind, sign in (("label_squared", -1), ("other_squared", 1)):
        if kind in slopes:
            of_square = _at(part, slopes[kind]).mul_(p).mul_(p if sign < 0 else q).mul_(2 * sign)
            result = of_square if result is None else result.add_(of_square)
    assert result is not None
    result.mul_(q).mul_(part.sign)
    return result if part.weight is None else result.mul_(part.weight)


def _difference(slopes: Mapping[str, Tensor], plus: str, minus: str) -> Tensor | None:
    if plus not in slopes and minus not in slopes:
        return None
    zero = torch.zeros((), dtype=next(iter(slopes.values())).dtype)
    return slopes.get(plus, zero) - slopes.get(minus, zero)


def _at(part: _Odds, slope: Tensor) -> Tensor:
    """Return by pixel, `[B, G, p]`, what `[B, G, 2]` holds for its label; 0 where ignored."""
    return torch.matmul(slope.unsqueeze(2), part.is_label).squeeze(2)
