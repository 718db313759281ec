"""The class sums of two classes on a CPU, forward and backward: of softmax with C = 2, and of sigmoid for each class.

The notation is that of `binary_read`. Each sum is made apart for the pixels of label 0 and of label 1: `[N, G, 2]`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from segtrain.kernels.at_label import as_floats
from segtrain.kernels.binary_read import Odds, Pairs, read
from segtrain.kernels.chunks import Chunk, few_rows
from segtrain.kernels.focal import focal_power, focal_slope
from segtrain.kernels.labels import check_labels
from segtrain.kernels.mined import MinedRead
from segtrain.kernels.pages import empty_like
from segtrain.kernels.request import Inputs, Request

KINDS = {  # what each sum is made of: of the pixels with the label, and of those without it
    "probability": ("p", "q"),
    "squared_probability": ("p_squared", "q_squared"),
    "intersection": ("p",),
    "cross_entropy": ("loss",),
    "focal": ("focal",),
    "log_mass": ("loss", "other_loss"),  # −log p of the label, and of the other class
}
MINED = ("loss", "focal", "other_loss")  # the kinds that mining leaves pixels out of


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
    kinds = sorted({kind for name in request.wanted for kind in KINDS[name]})
    sums = {kind: torch.zeros(images, groups, 2, dtype=torch.float64) for kind in ("count", "kept", *kinds)}
    rule = request.rule
    mined = None if rule is None else MinedRead(rule, pairs.target.shape, dtype=pairs.dtype)
    needs_loss = mined is not None or bool(set(kinds) & set(MINED))
    for chunk in pairs.chunks():
        part = read(pairs, chunk)
        loss, kept = part.loss() if needs_loss else part.d, part.kept
        if mined is not None:
            where = (chunk.images, slice(None), chunk.rows, chunk.columns)
            kept = mined.take(where, loss)
            kept = kept if part.weight is None else kept * part.weight
        _add(sums, chunk, part, kinds, loss.mul_(kept) if needs_loss and kept is not None else loss, kept, pairs)
    mask = torch.empty(0, dtype=torch.bool)
    if mined is not None:
        mask = _settle(mined, sums, pairs)
        if not mined.was_right:
            _add_mined(sums, [kind for kind in kinds if kind in MINED], mask, pairs)
        mask = mask.view(inputs.target.shape)
    gather = _of_sigmoid if request.sigmoid else _of_softmax
    counts = torch.cat([gather(sums, name) for name in ("count", "kept")])
    wanted = [gather(sums, name) for name in request.wanted]
    return torch.cat(wanted) if wanted else counts.new_zeros(0, images, pairs.logits.shape[1]), counts, mask


def _settle(mined: MinedRead, sums: Mapping[str, Tensor], pairs: Pairs) -> Tensor:
    """Return the final mask; the sums know how many pixels count and were kept, unless pixels have weights."""
    num_buckets = 2 * pairs.groups
    if pairs.weight is None:
        kept = sums["kept"]
        return mined.finish(sums["count"].sum(), lambda: kept.sum(), lambda: _buckets(pairs), num_buckets=num_buckets)
    valid = pairs.buckets(pairs.target) != 2
    return mined.finish(
        valid.sum(), lambda: (valid & mined.mask).sum(), lambda: _buckets(pairs), num_buckets=num_buckets
    )


def _add(
    sums: Mapping[str, Tensor],
    chunk: Chunk,
    part: Odds,
    kinds: list[str],
    loss: Tensor,
    kept: Tensor | None,
    pairs: Pairs,
) -> None:
    """Add the values of each kind by label, and what the pixels count; `loss` is that of the kept pixels."""
    count = part.is_label.sum(2) if part.weight is None else part.by_label(part.weight)
    found = {"count": count, "kept": count if kept is None or kept is part.weight else part.by_label(kept)}
    for kind in kinds:
        value = _value(kind, part, loss, kept, pairs)
        if part.weight is not None and kind not in MINED:
            value = value * part.weight
        found[kind] = part.by_label(value)
    for name, value in found.items():
        place = sums[name][chunk.images]
        place += value.view_as(place)


def _value(kind: str, part: Odds, loss: Tensor, kept: Tensor | None, pairs: Pairs) -> Tensor:
    """Return the values `[R, p]` that a kind of sum adds up; `loss` is that of the kept pixels."""
    match kind:
        case "p" | "q":
            return part.p if kind == "p" else part.q
        case "p_squared" | "q_squared":
            return (part.p if kind == "p_squared" else part.q).square()
        case "loss":
            return loss
        case "other_loss":
            return loss - part.d if kept is None else torch.addcmul(loss, part.d, kept, value=-1)
        case _:
            return focal_power(part.q, _exponent(pairs, part)).mul_(loss)


def _add_mined(sums: Mapping[str, Tensor], kinds: list[str], mask: Tensor, pairs: Pairs) -> None:
    """Replace the sums that mining leaves pixels out of by those over the pixels that it keeps."""
    count = sums["count"].clone()
    for name in ("kept", *kinds):
        sums[name].zero_()
    for chunk in pairs.chunks():
        part = read(pairs, chunk)
        kept = as_floats(pairs.select(mask, chunk), pairs.dtype)
        kept = kept if part.weight is None else kept * part.weight
        _add(sums, chunk, part, kinds, part.loss().mul_(kept), kept, pairs)
    sums["count"].copy_(count)


def _buckets(pairs: Pairs) -> Tensor:
    """Number the labels of all groups, 0 and 1 of the first, 2 and 3 of the second; ignored is one after the last."""
    target, groups = pairs.buckets(pairs.target), pairs.groups
    if groups == 1:
        return target
    first = 2 * torch.arange(groups, dtype=torch.int16).view(1, -1, 1, 1)
    return (target.to(torch.int16) + first).masked_fill_(target == 2, 2 * groups)


def _exponent(pairs: Pairs, part: Odds) -> float | Tensor:
    """Return γ: a number, or what broadcasts to `[R, p]` where classes have their own."""
    gamma = pairs.request.gamma
    if len(gamma) == 1:
        return gamma[0]
    of_classes = torch.tensor(gamma, dtype=pairs.dtype)
    if pairs.request.sigmoid:
        return pairs.by_row(of_classes.view(-1, 1), len(part.d) // pairs.groups)
    return torch.matmul(of_classes.view(1, 1, 2), part.is_label).squeeze(1)


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
    slopes = _slopes(grads, request)
    if not slopes:
        return result.zero_()
    rows = few_rows(result) if pairs.logits.shape != inputs.logits.shape else result
    kinds = list(slopes)
    table = torch.stack([slopes[kind] for kind in kinds], dim=2).to(pairs.dtype)  # [N, G, K, 2]
    for chunk in pairs.chunks():
        part = read(pairs, chunk)
        found = part.at_label(table[chunk.images].flatten(0, 1))
        slope = _gradient(pairs, part, dict(zip(kinds, found, strict=True)))
        place = rows[chunk.images, :, chunk.rows, chunk.columns]
        if request.sigmoid:
            place.copy_(slope.view(place.shape))
            continue
        slope = slope.view(place[:, 1].shape)
        place[:, 1].copy_(slope)
        place[:, 0].copy_(slope.neg_())
    return result


def _slopes(grads: Mapping[str, Tensor], request: Request) -> dict[str, Tensor]:
    """Return what each kind of value changes the result by, `[N, G, 2]` by label.

    p and q are each other's complement: of the two, "q" holds what q changes the result by less what p does.
    """
    slopes: dict[str, Tensor] = {}
    for name, grad in grads.items():
        none = torch.zeros_like(grad)
        own, *others = KINDS[name.removesuffix("_negatives")]
        if request.sigmoid:
            pair = (grad, none) if name.endswith("_negatives") else (none, grad)
            of_label, of_others = torch.stack(pair, dim=2), torch.stack((grad, none), dim=2)
        else:
            of_label, of_others = grad.unsqueeze(1), grad.flip(1).unsqueeze(1)
        for kind, slope in ((own, of_label), *((kind, of_others) for kind in others)):
            key, sign = ("q", -1) if kind == "p" else (kind, 1)
            slopes[key] = slopes.get(key, 0.0) + sign * request.scale * slope
    return slopes


def _gradient(pairs: Pairs, part: Odds, slopes: Mapping[str, Tensor]) -> Tensor:
    """Return the gradient of the logits' difference, `[R, p]`; overwrites the slopes.

    dq/dd = p q, dp/dd = −p q, dℓ/dd = q and d(ℓ − d)/dd = −p.
    """
    result = _pixel_slope(pairs, part, slopes)
    if "q" in slopes:
        factor = part.p if part.weight is None else part.p * part.weight
        result.addcmul_(slopes["q"], factor)
    for kind, own, other in (("p_squared", part.p, -2.0), ("q_squared", part.q, 2.0)):
        if kind in slopes:
            of_square = slopes[kind].mul_(part.p).mul_(own).mul_(other)
            result += of_square if part.weight is None else of_square.mul_(part.weight)
    result.mul_(part.q)
    if "other_loss" in slopes:
        of_other = slopes["other_loss"].mul_(part.p)
        result -= of_other if part.kept is None else of_other.mul_(part.kept)
    return result.mul_(part.sign)


def _pixel_slope(pairs: Pairs, part: Odds, slopes: Mapping[str, Tensor]) -> Tensor:
    """Return what the pixel terms add to the gradient, without the factor q; a tensor to go on with."""
    result = slopes.get("loss")
    if "focal" in slopes:
        of_focal = focal_slope(part.loss(), part.p, part.q, _exponent(pairs, part)).mul_(slopes["focal"])
        result = of_focal if result is None else result.add_(of_focal)
    if result is None:
        return torch.zeros_like(part.d)
    return result if part.kept is None else result.mul_(part.kept)
