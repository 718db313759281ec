"""The heart of the losses: a few per-image, per-class sums over the pixels, from one softmax of the logits."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from segtrain.errors import DataError
from segtrain.losses.hard_examples import HardExamples
from segtrain.losses.odds import label_odds

SUMS = ("probability", "squared_probability", "intersection", "cross_entropy", "focal")


@dataclass(frozen=True, eq=False)
class ClassSums:
    """Sums over the valid pixels i with label y_i, one row per image: float64 `[N, C]`, so that counts stay exact.

    A pixel weight multiplies each pixel in all of them. A sum that was not wanted is None. Only the pixel terms
    (`kept`, `cross_entropy`, `focal`) leave out the pixels that hard-example mining drops.
    """

    pixels: Tensor  # Σ [y=c]
    kept: Tensor  # Σ [y=c] over the kept pixels; equal to `pixels` without mining
    probability: Tensor | None = None  # Σ p_c
    squared_probability: Tensor | None = None  # Σ p_c²
    intersection: Tensor | None = None  # Σ [y=c] p_c
    cross_entropy: Tensor | None = None  # Σ_{y=c} −log p_c
    focal: Tensor | None = None  # Σ_{y=c} (1 − p_c)^γ (−log p_c)


def class_sums(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    gamma: float = 2.0,
    pixel_weight: Tensor | None = None,
    keep: Tensor | HardExamples | None = None,
    wanted: Collection[str] = SUMS,
) -> ClassSums:
    """Sum what the losses are made of, per image and class; differentiable (once) in the logits.

    All goes through the log-odds against the label, d = log(q / p_y), in which q = 1 − p_y is a sum over the other
    classes (see `label_odds`): −log p_y = softplus(d) and q^γ = exp(−γ softplus(−d)) then keep full relative
    precision where 1 − p_y would round to 0, and have finite gradients for every γ ≥ 0.

    Args:
        logits: float `[N, C, H, W]`, any strides; float16 and bfloat16 are computed in float32. Never changed.
        target: integer `[N, H, W]`, labels in [0, C) or `ignore_index`, of any integer type. Never changed.
        ignore_index: label of the pixels that count nowhere; they get an exactly zero gradient.
        gamma: exponent γ of `focal`.
        pixel_weight: float `[N, H, W]`, a constant factor of each pixel in every sum.
        keep: bool `[N, H, W]`, or the rule that makes it: pixels that stay in the pixel terms.
        wanted: names of the sums to compute, of SUMS; the others are None and cost nothing.

    Returns:
        ClassSums of float64 `[N, C]` tensors.

    Raises:
        ValueError: shapes or types that do not fit, or an unknown name in `wanted`.
        DataError: a label out of range (seen here on the CPU only: on CUDA it would stall the device).
    """
    _check_shapes(logits, target, pixel_weight, wanted)
    num_classes = logits.shape[1]
    labels = target.flatten(1).long()
    valid = labels != ignore_index
    if not labels.is_cuda:
        check_labels(labels, num_classes=num_classes, ignore_index=ignore_index)
    weight = None if pixel_weight is None else torch.where(valid, pixel_weight.detach().flatten(1).double(), 0.0)
    buckets = torch.where(valid, labels, num_classes)  # the last bucket takes what is ignored
    pixels = _counts(buckets, num_classes) if weight is None else sum_by_class(weight, buckets, num_classes)
    if not wanted and not isinstance(keep, HardExamples):
        return ClassSums(pixels=pixels, kept=pixels if keep is None else _kept(keep, weight, buckets, num_classes))

    bins = _Bins(buckets, num_classes, weight)
    powers = tuple(power for name, power in (("probability", 1), ("squared_probability", 2)) if name in wanted)
    with torch.autocast(logits.device.type, enabled=False):
        scores, class_dim = _flatten(logits)
        log_odds, of_others = label_odds(
            scores,
            torch.where(valid, labels, 0),
            valid=valid,
            factor=(valid if weight is None else weight).to(torch.promote_types(logits.dtype, torch.float32)),
            class_dim=class_dim,
            powers=powers,
        )
        mask = keep(log_odds.detach(), valid) if isinstance(keep, HardExamples) else keep
        kept = pixels if mask is None else _kept(mask, weight, buckets, num_classes)
        sums = _pixel_sums(log_odds, gamma, wanted, replace(bins, keep=mask))
        sums |= _region_sums(log_odds, of_others, wanted, bins)
    return ClassSums(pixels=pixels, kept=kept, **{name: sums[name] for name in wanted})


def target_pixels(target: Tensor, *, num_classes: int, ignore_index: int, pixel_weight: Tensor | None = None) -> Tensor:
    """Return `ClassSums.pixels` of a target `[N, H, W]` alone: float64 `[N, C]`."""
    labels = target.flatten(1).long()
    if not labels.is_cuda:
        check_labels(labels, num_classes=num_classes, ignore_index=ignore_index)
    valid = labels != ignore_index
    buckets = torch.where(valid, labels, num_classes)
    if pixel_weight is None:
        return _counts(buckets, num_classes)
    return sum_by_class(torch.where(valid, pixel_weight.flatten(1).double(), 0.0), buckets, num_classes)


def check_labels(target: Tensor, *, num_classes: int, ignore_index: int) -> None:
    """Raise DataError naming labels outside [0, num_classes) with their pixel counts; waits for the device."""
    labels = target.long()
    if labels.numel() == 0 or (int(labels.amin()) >= 0 and int(labels.amax()) < num_classes):
        return
    wrong = labels[((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)]
    if wrong.numel() == 0:
        return
    values, counts = torch.unique(wrong, return_counts=True)
    found = ", ".join(f"{v} ({n} pixels)" for v, n in list(zip(values.tolist(), counts.tolist(), strict=True))[:10])
    raise DataError(
        f"labels out of range in the target: {found}; expected 0 to {num_classes - 1}, or {ignore_index} for ignored "
        "pixels. Map the raw values of the masks with data.label_map, or correct num_classes / ignore_index."
    )


def sum_by_class(values: Tensor, buckets: Tensor, num_classes: int) -> Tensor:
    """Sum values `[N, P]` into float64 `[N, C]` by their bucket (int64 `[N, P]`; bucket C is dropped).

    Deterministic on every device: CUDA adds floats in no fixed order when it scatters, so there it is one
    masked sum for each class.
    """
    if values.is_cuda:
        return masked_sums(values, buckets, num_classes)
    sums = torch.zeros(len(values), num_classes + 1, dtype=torch.float64, device=values.device)
    return sums.scatter_add(1, buckets, values.double())[:, :num_classes]


def masked_sums(values: Tensor, buckets: Tensor, num_classes: int) -> Tensor:
    """`sum_by_class` as one masked sum for each class: slower, in a fixed order on any device."""
    each = [torch.where(buckets == c, values, 0.0).sum(1, dtype=torch.float64) for c in range(num_classes)]
    return torch.stack(each, dim=1)


def _counts(buckets: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of each class, exactly: float64 `[N, C]`."""
    counts = torch.zeros(len(buckets), num_classes + 1, dtype=torch.int64, device=buckets.device)
    one = torch.ones((), dtype=torch.int64, device=buckets.device)
    return counts.scatter_add(1, buckets, one.expand_as(buckets))[:, :num_classes].double()


def _kept(keep: Tensor, weight: Tensor | None, buckets: Tensor, num_classes: int) -> Tensor:
    """Count (or sum the weights of) the pixels of each class that hard-example mining keeps."""
    kept_buckets = torch.where(keep.flatten(1), buckets, num_classes)
    if weight is None:
        return _counts(kept_buckets, num_classes)
    return sum_by_class(weight, kept_buckets, num_classes)


@dataclass(frozen=True, eq=False)
class _Bins:
    """Where each pixel's value goes, and with what factor."""

    buckets: Tensor  # int64 [N, P], num_classes where ignored
    num_classes: int
    weight: Tensor | None  # float64 [N, P]
    keep: Tensor | None = None  # bool [N, H, W] or [N, P]

    def sum(self, values: Tensor) -> Tensor:
        values = values if self.weight is None else values * self.weight
        values = values if self.keep is None else torch.where(self.keep.flatten(1), values, 0.0)
        return sum_by_class(values, self.buckets, self.num_classes)


def _flatten(logits: Tensor) -> tuple[Tensor, int]:
    """Flatten H and W, free where strides allow: `[N, C, P]` and 1, or of channels_last `[N, P, C]` and 2."""
    if not logits.is_contiguous() and logits.is_contiguous(memory_format=torch.channels_last):
        return logits.permute(0, 2, 3, 1).flatten(1, 2), 2
    return logits.flatten(2), 1


def _pixel_sums(log_odds: Tensor, gamma: float, wanted: Collection[str], bins: _Bins) -> dict[str, Tensor]:
    """Sum the terms that hard-example mining masks."""
    sums: dict[str, Tensor] = {}
    if not {"cross_entropy", "focal"}.isdisjoint(wanted):
        cross_entropy = F.softplus(log_odds, threshold=50.0)
    if "cross_entropy" in wanted:
        sums["cross_entropy"] = bins.sum(cross_entropy)
    if "focal" in wanted:
        focal = (
            cross_entropy if gamma == 0 else torch.exp(F.softplus(-log_odds, threshold=50.0) * -gamma) * cross_entropy
        )
        sums["focal"] = bins.sum(focal)
    return sums


def _region_sums(
    log_odds: Tensor, of_others: dict[int, Tensor], wanted: Collection[str], bins: _Bins
) -> dict[str, Tensor]:
    """Sum the probabilities: the labels' by bins, to which those of the other classes are added."""
    sums: dict[str, Tensor] = {}
    if {"probability", "intersection", "squared_probability"}.isdisjoint(wanted):
        return sums
    of_label = torch.sigmoid(-log_odds)
    if "probability" in wanted or "intersection" in wanted:
        sums["intersection"] = bins.sum(of_label)
    if "probability" in wanted:
        sums["probability"] = sums["intersection"] + of_others[1]
    if "squared_probability" in wanted:
        sums["squared_probability"] = bins.sum(of_label.square()) + of_others[2]
    return sums


def _check_shapes(logits: Tensor, target: Tensor, pixel_weight: Tensor | None, wanted: Collection[str]) -> None:
    unknown = set(wanted) - set(SUMS)
    if unknown:
        raise ValueError(f"unknown sums {sorted(unknown)}: choose from {', '.join(SUMS)}")
    if logits.dim() != 4 or not logits.is_floating_point():
        raise ValueError(f"logits must be float [N, C, H, W], found {logits.dtype} {list(logits.shape)}")
    expected = [logits.shape[0], *logits.shape[2:]]
    if list(target.shape) != expected or target.is_floating_point() or target.dtype == torch.bool:
        raise ValueError(
            f"target must be integer [N, H, W] = {expected} to fit logits {list(logits.shape)}, "
            f"found {target.dtype} {list(target.shape)}"
        )
    if pixel_weight is not None and list(pixel_weight.shape) != expected:
        raise ValueError(f"pixel_weight must be [N, H, W] = {expected}, found {list(pixel_weight.shape)}")
