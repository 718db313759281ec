"""The class sums of two classes on a CPU, forward and backward: of softmax with C = 2, and of sigmoid for each class.

The notation is that of `binary_read`. Each sum is made apart for the pixels of label 0 and of label 1: `[N, G, 2]`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import softplus

from segtrain.kernels.binary_read import Odds, Pairs, read
from segtrain.kernels.chunks import Chunk, few_rows
from segtrain.kernels.focal import focal_power, focal_slope
from segtrain.kernels.labels import check_labels
from segtrain.kernels.mined import MINED, MinedRead
from segtrain.kernels.pages import empty_like
from segtrain.kernels.request import Inputs, Request

KINDS = {  # what each sum is made of: of the pixels with the label (p), and of those without it (q)
    "probability": ("p", "q"),
    "squared_probability": ("p_squared", "q_squared"),
    "intersection": ("p",),
    "cross_entropy": ("cross_entropy",),
    "focal": ("focal",),
}
LINEAR_THRESHOLD = 40.0  # beyond it log(1 + e^d) is d to the last digit of float64


def forward(inputs: Inputs, request: Request) -> tuple[Tensor, Tensor, Tensor]:
    """Return the wanted sums `[K, N, C]`, the counts, and the mined mask, as `softmax_cpu.forward` does.

    With sigmoid there are as many pixel sums again, over the negatives; the counts are pixels, kept, and both of
    negatives.

    Raises:
        DataError: a label out of range.
    """
    check_labels(inputs.target, num_classes=2, ignore_index=request.ignore_index)
    pairs = Pairs.prepare(inputs, request)
    images, groups = pairs.target.shape[:2]
    kinds = tuple(sorted({kind for name in request.wanted for kind in KINDS[name]}))
    sums = {kind: torch.zeros(images, groups, 2, dtype=torch.float64) for kind in ("count", "kept", *kinds)}
    rule = request.rule
    mined = None if rule is None else MinedRead(rule, pairs.target.shape, dtype=pairs.dtype)
    for chunk in pairs.chunks():
        part = read(pairs, chunk)
        loss = _loss(part, pairs) if mined is not None or set(kinds) & set(MINED) else part.d
        kept = part.kept
        if mined is not None:
            kept = mined.take((chunk.images, slice(None), chunk.rows, chunk.columns), loss)
            kept = kept if part.weight is None else kept * part.weight
        _add(sums, kinds, chunk, part, _values(pairs, part, loss, kinds), kept)
    mask = torch.empty(0, dtype=torch.bool)
    if mined is not None:
        num_valid = sums["count"].sum() if pairs.weight is None else (pairs.target != 2).sum()
        mask = mined.finish(num_valid, lambda: _buckets(pairs), num_buckets=2 * groups)
        if not mined.was_right:
            _add_mined(sums, kinds, mined, pairs)
        mask = mask.view(inputs.target.shape)
    gather = _of_sigmoid if request.sigmoid else _of_softmax
    counts = torch.cat([gather(sums, name) for name in ("count", "kept")])
    wanted = [gather(sums, name) for name in request.wanted]
    return torch.cat(wanted) if wanted else counts.new_zeros(0, images, pairs.logits.shape[1]), counts, mask


def _loss(part: Odds, pairs: Pairs) -> Tensor:
    """Return −log p_y, 0 where ignored."""
    loss = softplus(part.d, threshold=LINEAR_THRESHOLD)
    return loss.mul_(part.sign.square()) if pairs.any_ignored else loss


def _values(pairs: Pairs, part: Odds, loss: Tensor, kinds: tuple[str, ...]) -> list[Tensor]:
    """Return the values `[B, G, p]` that each kind of sum adds up."""
    d = part.d
    p = torch.sigmoid(-d) if {"p", "p_squared"} & set(kinds) else d
    q = torch.sigmoid(d) if {"q", "q_squared", "focal"} & set(kinds) else d
    values = []
    for kind in kinds:
        match kind:
            case "cross_entropy":
                values.append(loss)
            case "focal":
                values.append(focal_power(q, _exponent(pairs, part)).mul_(loss))
            case "p" | "q":
                values.append(p if kind == "p" else q)
            case _:
                values.append((p if kind == "p_squared" else q).square())
    return values


def _add(
    sums: Mapping[str, Tensor],
    kinds: tuple[str, ...],
    chunk: Chunk,
    part: Odds,
    values: list[Tensor],
    kept: Tensor | None,
) -> None:
    """Add values `[B, G, p]`, and what their pixels count, by label."""
    for kind, value in zip(kinds, values, strict=True):
        factor = kept if kind in MINED else part.weight
        sums[kind][chunk.images] += _by_label(part, value if factor is None else value * factor)
    count = part.is_label.sum(3) if part.weight is None else _by_label(part, part.weight)
    sums["count"][chunk.images] += count
    sums["kept"][chunk.images] += count if kept is None or kept is part.weight else _by_label(part, kept)


def _add_mined(sums: Mapping[str, Tensor], kinds: tuple[str, ...], mined: MinedRead, pairs: Pairs) -> None:
    """Replace the sums by those over the pixels that mining keeps, from the loss of each: q = 1 − e^{−ℓ}."""
    for name in ("kept", *MINED):
        if name in sums:
            sums[name].zero_()
    for chunk in pairs.chunks():
        part = read(pairs, chunk)
        kept = pairs.select(mined.mask, chunk).to(pairs.dtype)
        kept = kept if part.weight is None else kept * part.weight
        loss = pairs.select(mined.losses, chunk)
        sums["kept"][chunk.images] += _by_label(part, kept)
        for kind in (kind for kind in kinds if kind in MINED):
            value = loss
            if kind == "focal":
                value = focal_power(torch.expm1(-loss).neg_(), _exponent(pairs, part)).mul_(loss)
            sums[kind][chunk.images] += _by_label(part, value * kept)


def _by_label(part: Odds, values: Tensor) -> Tensor:
    """Sum `[B, G, p]` over the pixels of each label: `[B, G, 2]`."""
    return torch.matmul(part.is_label, values.unsqueeze(3)).squeeze(3)


def _buckets(pairs: Pairs) -> Tensor:
    """Number the labels of all groups, 0 and 1 of the first, 2 and 3 of the second; ignored is one after the last."""
    groups = pairs.target.shape[1]
    if groups == 1:
        return pairs.target
    first = 2 * torch.arange(groups, dtype=torch.int16).view(1, -1, 1, 1)
    return (pairs.target.to(torch.int16) + first).masked_fill_(pairs.target == 2, 2 * groups)


def _exponent(pairs: Pairs, part: Odds) -> float | Tensor:
    """Return γ: a number, or what broadcasts to `[B, G, p]` where classes have their own."""
    gamma = pairs.request.gamma
    if len(gamma) == 1:
        return gamma[0]
    of_classes = torch.tensor(gamma, dtype=pairs.dtype)
    if pairs.request.sigmoid:
        return of_classes.view(1, -1, 1)
    return torch.matmul(of_classes.view(1, 1, 1, 2), part.is_label).squeeze(2)


def _of_softmax(sums: Mapping[str, Tensor], name: str) -> Tensor:
    """Return `[1, N, 2]`: the other class of a pixel is the one that its label is not."""
    first, *second = KINDS.get(name, (name,))
    total = sums[first][:, 0]
    return (total + sums[second[0]][:, 0].flip(1) if second else total).unsqueeze(0)


def _of_sigmoid(sums: Mapping[str, Tensor], name: str) -> Tensor:
    """Return `[1 or 2, N, C]`: positives, and where the sum has them, negatives."""
    first, *second = KINDS.get(name, (name,))
    if second:
        return (sums[first][..., 1] + sums[second[0]][..., 0]).unsqueeze(0)
    return sums[first].permute(2, 0, 1).flip(0)[: 1 if name == "intersection" else 2]


def backward(grads: Mapping[str, Tensor], inputs: Inputs, request: Request) -> Tensor:
    """Return the gradient of the logits, in their type and layout, given that of each sum, float64 `[N, C]`.

    With sigmoid, those of the negatives are named `..._negatives`. A sum whose gradient is not given costs nothing.
    """
    pairs = Pairs.prepare(inputs, request)
    result = empty_like(inputs.logits)
    slopes = {kind: slope.to(pairs.dtype) for kind, slope in _slopes(grads, request).items()}
    if not slopes:
        return result.zero_()
    rows = few_rows(result) if pairs.logits.shape != inputs.logits.shape else result
    for chunk in pairs.chunks():
        local = {kind: slope[chunk.images] for kind, slope in slopes.items()}
        slope = _gradient(pairs, read(pairs, chunk), local)
        place = rows[chunk.images, :, chunk.rows, chunk.columns]
        if request.sigmoid:
            place.copy_(slope.view(place.shape))
            continue
        slope = slope.view(place[:, 1].shape)
        place[:, 1].copy_(slope)
        place[:, 0].copy_(slope.neg_())
    return result


def _slopes(grads: Mapping[str, Tensor], request: Request) -> dict[str, Tensor]:
    """Return by kind of sum what it changes the result by, `[N, G, 2]` by label."""
    slopes: dict[str, Tensor] = {}
    for name, grad in grads.items():
        none = torch.zeros_like(grad)
        own, *others = KINDS[name.removesuffix("_negatives")]
        if request.sigmoid:
            pair = (grad, none) if name.endswith("_negatives") else (none, grad)
            of_label, of_others = torch.stack(pair, dim=2), torch.stack((grad, none), dim=2)
        else:
            of_label, of_others = grad.unsqueeze(1), grad.flip(1).unsqueeze(1)
        slopes[own] = slopes.get(own, 0.0) + request.scale * of_label
        for kind in others:
            slopes[kind] = slopes.get(kind, 0.0) + request.scale * of_others
    return slopes


def _gradient(pairs: Pairs, part: Odds, slopes: Mapping[str, Tensor]) -> Tensor:
    """Return the gradient of the logits' difference, `[B, G, p]`, by dq/dd = p q, dp/dd = −p q and dℓ/dd = q."""
    q, p = torch.sigmoid(part.d), torch.sigmoid(-part.d)
    kinds = [kind for kind in ("cross_entropy", "focal") if kind in slopes]
    first = _difference(slopes)
    tables = [slopes[kind] for kind in kinds] + ([] if first is None else [first])
    result = torch.zeros_like(q)
    if tables:  # one product looks all of them up: by pixel, what each holds for its label
        found = torch.matmul(torch.stack(tables, dim=2), part.is_label).unbind(2)
        for kind, slope in zip(kinds, found, strict=False):
            result += slope if kind == "cross_entropy" else slope * _focal_slope(pairs, part, p, q)
        if kinds and part.kept is not None:
            result.mul_(part.kept)
        if first is not None:
            factor = p if part.weight is None else p * part.weight
            result.addcmul_(found[-1], factor)
    for kind, factor in (
        (("p_squared", -2 * p), ("q_squared", 2 * q)) if {"p_squared", "q_squared"} & set(slopes) else ()
    ):
        if kind in slopes:
            of_square = torch.matmul(slopes[kind].unsqueeze(2), part.is_label).squeeze(2).mul_(p).mul_(factor)
            result += of_square if part.weight is None else of_square.mul_(part.weight)
    return result.mul_(q).mul_(part.sign)


def _focal_slope(pairs: Pairs, part: Odds, p: Tensor, q: Tensor) -> Tensor:
    return focal_slope(softplus(part.d, threshold=LINEAR_THRESHOLD), p, q, _exponent(pairs, part))


def _difference(slopes: Mapping[str, Tensor]) -> Tensor | None:
    """Return what q changes the result by less what p does: they are each other's complement."""
    if "q" not in slopes:
        return -slopes["p"] if "p" in slopes else None
    return slopes["q"] - slopes["p"] if "p" in slopes else slopes["q"]
