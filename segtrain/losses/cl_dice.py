"""Soft clDice: the overlap of skeletons with masks, for thin structures that must not be torn apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from segtrain.losses.class_sums import Activation
from segtrain.losses.own_pass import checked_target, chosen_classes, equals, working_dtype
from segtrain.losses.skeleton import mask_skeleton, soft_skeleton
from segtrain.losses.term import divide

Per = Literal["batch", "image"]


def cl_dice(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    classes: Sequence[int] | None = None,
    iterations: int = 3,
    smooth: float = 1.0,
    per: Per = "batch",
    activation: Activation = "softmax",
) -> Tensor:
    """Soft clDice (Shit 2021, eqs. 1 and 2, Alg. 1 and 2): the mean over the classes present of 1 − clDice.

    With p the probabilities of a class and v its mask, S the soft skeleton and s `smooth`: T_prec = (Σ S(p) v + s) /
    (Σ S(p) + s), T_sens = (Σ S(v) p + s) / (Σ S(v) + s), and clDice is their harmonic mean. It asks for connected
    centre lines, not for right widths: add it to a region term, as the paper does.

    Ignored pixels are taken out of both p and v, as if neither held the class there, before the skeletons are made: a
    structure that runs into an ignored region ends at it. They get an exactly zero gradient. Once differentiable; of
    equal probabilities in a pooling window the first one takes the gradient. What a skeleton is made of is made again
    in the backward pass, class by class: only the probabilities and the skeletons are held.

    Args:
        logits: float `[N, C, H, W]`, any strides; float16 and bfloat16 are computed in float32.
        target: integer `[N, H, W]`, labels in [0, C) or `ignore_index`; with sigmoid `[N, C, H, W]` (or `[N, H, W]`
            for C = 1) of 0, 1 and `ignore_index`.
        ignore_index: label of the pixels that count nowhere.
        classes: the K classes that are thin structures; None for all.
        iterations: how often the maps are eroded, ≥ 1: at least half the width of the widest structure in pixels. What
            is wider has no skeleton.
        smooth: s ≥ 0.
        per: overlaps are taken over the `batch`, or in each `image` and the loss averaged over (image, class) pairs.
        activation: `softmax`, or `sigmoid`: p = σ(z).

    Returns:
        The statistics that `cl_dice_value` makes the loss of, and that may be added over micro-batches and ranks.
        `per: batch`: float64 `[5, K]`: Σ S(p) v, Σ S(p), Σ S(v) p, Σ S(v), Σ v. The last two depend on the target
        alone.
        `per: image`: float64 `[2]`: the sum of the losses, and the number of pairs, which depends on the target alone.

    Raises:
        ValueError: shapes, types or settings that do not fit.
        DataError: a label out of range (seen here on the CPU only).
    """
    if iterations < 1 or not smooth >= 0:
        raise ValueError(f"iterations must be at least 1 and smooth at least 0, found {iterations} and {smooth}")
    if per not in ("batch", "image"):
        raise ValueError(f"per must be batch or image, found {per!r}")
    target = checked_target(logits, target, ignore_index=ignore_index, activation=activation)
    chosen = chosen_classes(classes, num_classes=logits.shape[1])
    with torch.autocast(logits.device.type, enabled=False):
        sums = _overlaps(logits, target, ignore_index, chosen, iterations, activation == "sigmoid")
    if per == "batch":
        return sums.sum(1)
    present = sums[4] > 0
    return torch.stack([(_losses(sums, smooth) * present).sum(), present.sum(dtype=torch.float64)])


def cl_dice_value(statistics: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Return the loss, a float64 scalar, from what `cl_dice` returned or sums of that; 0 where no class is present."""
    if statistics.dim() == 1:
        return divide(*statistics.unbind())
    present = statistics[4] > 0
    return divide((_losses(statistics, smooth) * present).sum(), present.sum())


def _losses(sums: Tensor, smooth: float) -> Tensor:
    """Return 1 − 2 T_prec T_sens / (T_prec + T_sens) of sums `[5, ...]`; 1 where both are 0 or unknown."""
    hit, skeleton, found, true_skeleton = (sums[:4] + smooth).unbind()
    # With T_prec = a/A and T_sens = b/B the harmonic mean is 2ab / (aB + bA): no quotient of an empty skeleton.
    return 1 - divide(2 * hit * found, hit * true_skeleton + found * skeleton)


def _overlaps(
    logits: Tensor, target: Tensor, ignore_index: int, classes: list[int], iterations: int, sigmoid: bool
) -> Tensor:
    """Return the five sums of each image and class, float64 `[5, N, K]`."""
    valid = ~equals(target, ignore_index)
    if not sigmoid:
        valid = valid.unsqueeze(1)
    scores = torch.where(valid, logits.to(working_dtype(logits)), 0.0)  # so that NaN of ignored pixels ends here
    probability = torch.where(valid, scores.sigmoid() if sigmoid else scores.softmax(1), 0.0)
    maps, counted = probability.unbind(1), valid.expand_as(logits).unbind(1)
    columns = []
    for c in classes:
        mask = (equals(target[:, c], 1) if sigmoid else equals(target, c)) & counted[c]
        line = mask_skeleton(mask, iterations=iterations)
        soft = soft_skeleton(maps[c], iterations=iterations)
        columns.append(torch.stack([_sum(x) for x in (soft * mask, soft, maps[c] * line, line, mask)]))
    return torch.stack(columns, dim=2)


def _sum(values: Tensor) -> Tensor:
    return values.sum((-2, -1), dtype=torch.float64)
