"""The heart of the losses: a few per-image, per-class sums over the pixels, from one softmax of the logits."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from segtrain.errors import DataError
from segtrain.losses.hard_examples import HardExamples
from segtrain.losses.odds import label_odds, two_class_odds
from segtrain.losses.pixel_sums import pixel_sums, sum_by_class

OTHERS = {"probability": "other", "squared_probability": "other_squared"}
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
    _check_shapes(logits, target, pixel_weight=pixel_weight, keep=keep, wanted=wanted)
    num_classes = logits.shape[1]
    buckets, valid = _buckets(target, num_classes=num_classes, ignore_index=ignore_index)
    exact_weight = None if pixel_weight is None else _factor(pixel_weight, valid)
    pixels = _mass(buckets, exact_weight, num_classes)
    if not wanted and not isinstance(keep, HardExamples):
        mask = None if keep is None else keep.flatten(1)
        return ClassSums(pixels=pixels, kept=_kept(pixels, mask, buckets, exact_weight))

    dtype = torch.promote_types(logits.dtype, torch.float32)
    weight = None if exact_weight is None else exact_weight.to(dtype)
    powers = tuple(power for name, power in (("probability", 1), ("squared_probability", 2)) if name in wanted)
    with torch.autocast(logits.device.type, enabled=False):
        scores, class_dim = _flatten(logits)
        of_others: dict[int, Tensor] = {}
        if num_classes == 2:
            log_odds = two_class_odds(scores, buckets, class_dim=class_dim)
        else:
            log_odds, of_others = label_odds(
                scores,
                buckets.long().masked_fill(~valid, 0),
                valid=valid,
                factor=valid.to(dtype) if weight is None else weight,
                class_dim=class_dim,
                powers=powers,
            )
        mask = keep(log_odds.detach(), valid) if isinstance(keep, HardExamples) else keep
        mask = None if mask is None else mask.flatten(1)
        sums = pixel_sums(
            log_odds,
            buckets,
            num_classes=num_classes,
            kinds=_kinds(wanted, num_classes),
            gamma=gamma,
            weight=weight,
            keep=mask,
        )
        if num_classes == 2:  # the other class is the one that the label is not
            of_others = {power: sums["other" if power == 1 else "other_squared"].flip(1) for power in powers}
        sums = _region_sums(sums, of_others)
    kept = _kept(pixels, mask, buckets, exact_weight)
    return ClassSums(pixels=pixels, kept=kept, **{name: sums[name] for name in wanted})


def target_pixels(target: Tensor, *, num_classes: int, ignore_index: int, pixel_weight: Tensor | None = None) -> Tensor:
    """Return `ClassSums.pixels` of a target `[N, H, W]` alone: float64 `[N, C]`."""
    buckets, valid = _buckets(target, num_classes=num_classes, ignore_index=ignore_index)
    return _mass(buckets, None if pixel_weight is None else _factor(pixel_weight, valid), num_classes)


def check_labels(target: Tensor, *, num_classes: int, ignore_index: int) -> None:
    """Raise DataError naming labels outside [0, num_classes) with their pixel counts; waits for the device."""
    labels = _narrow(target, num_classes, ignore_index)
    ignored = labels == ignore_index
    low, high = labels.masked_fill(ignored, 0).aminmax() if labels.numel() else (0, 0)
    if int(low) >= 0 and int(high) < num_classes:
        return
    wrong = labels[((labels < 0) | (labels >= num_classes)) & ~ignored]
    values, counts = torch.unique(wrong, return_counts=True)
    found = ", ".join(f"{v} ({n} pixels)" for v, n in list(zip(values.tolist(), counts.tolist(), strict=True))[:10])
    raise DataError(
        f"labels out of range in the target: {found}; expected 0 to {num_classes - 1}, or {ignore_index} for ignored "
        "pixels. Map the raw values of the masks with data.label_map, or correct num_classes / ignore_index."
    )


def _narrow(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Return the target in the smallest type at hand that holds its labels, `ignore_index` and `num_classes`."""
    if target.dtype == torch.uint8 and 0 <= ignore_index <= 255 and num_classes <= 255:
        return target
    small = target.dtype in (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32)
    return target.to(torch.int32 if small else torch.int64)


def _buckets(target: Tensor, *, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return where each pixel is counted, integer `[N, P]`, `num_classes` where ignored; and bool: is it valid."""
    labels = _narrow(target, num_classes, ignore_index).flatten(1)
    if not labels.is_cuda:
        check_labels(labels, num_classes=num_classes, ignore_index=ignore_index)
    ignored = labels == ignore_index
    return labels.masked_fill(ignored, num_classes), ~ignored


def _factor(pixel_weight: Tensor, valid: Tensor) -> Tensor:
    """Flatten the weights to float64 `[N, P]`, 0 where ignored."""
    return torch.where(valid, pixel_weight.detach().flatten(1).double(), 0.0)


def _mass(buckets: Tensor, weight: Tensor | None, num_classes: int) -> Tensor:
    """Count the pixels of each class exactly, or sum their weights: float64 `[N, C]`."""
    if weight is not None:
        return sum_by_class(weight, buckets, num_classes=num_classes)
    if not buckets.is_cuda:
        counts = [torch.bincount(image, minlength=num_classes + 1)[:num_classes] for image in buckets]
        return torch.stack(counts).double() if counts else torch.zeros(0, num_classes, dtype=torch.float64)
    zeros = torch.zeros(len(buckets), num_classes + 1, dtype=torch.int64, device=buckets.device)
    ones = torch.ones((), dtype=torch.int64, device=buckets.device)
    return zeros.scatter_add_(1, buckets.long(), ones.expand_as(buckets))[:, :num_classes].double()


def _kept(pixels: Tensor, mask: Tensor | None, buckets: Tensor, weight: Tensor | None) -> Tensor:
    """Count (or sum the weights of) the pixels of each class that hard-example mining keeps; all without a mask."""
    num_classes = pixels.shape[1]
    return pixels if mask is None else _mass(buckets.masked_fill(~mask, num_classes), weight, num_classes)


def _kinds(wanted: Collection[str], num_classes: int) -> tuple[str, ...]:
    """Name the pixel sums that the wanted class sums are made of; with two classes, the other class's too."""
    kinds = [name for name in ("cross_entropy", "focal") if name in wanted]
    if "intersection" in wanted or "probability" in wanted:
        kinds.append("label")
    if "squared_probability" in wanted:
        kinds.append("label_squared")
    if num_classes == 2:
        kinds += [other for name, other in OTHERS.items() if name in wanted]
    return tuple(kinds)


def _flatten(logits: Tensor) -> tuple[Tensor, int]:
    """Flatten H and W, free where strides allow: `[N, C, P]` and 1, or of channels_last `[N, P, C]` and 2."""
    if not logits.is_contiguous() and logits.is_contiguous(memory_format=torch.channels_last):
        return logits.permute(0, 2, 3, 1).flatten(1, 2), 2
    return logits.flatten(2), 1


def _region_sums(sums: dict[str, Tensor], of_others: dict[int, Tensor]) -> dict[str, Tensor]:
    """Add to the probabilities at the label of each class those where another class is the label."""
    if "label" in sums:
        sums["intersection"] = sums["label"]
    if 1 in of_others:
        sums["probability"] = sums["label"] + of_others[1]
    if 2 in of_others:
        sums["squared_probability"] = sums["label_squared"] + of_others[2]
    return sums


def _check_shapes(
    logits: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None,
    keep: Tensor | HardExamples | None,
    wanted: Collection[str],
) -> None:
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
    if isinstance(keep, Tensor) and (list(keep.shape) != expected or keep.dtype != torch.bool):
        raise ValueError(f"keep must be bool [N, H, W] = {expected}, found {keep.dtype} {list(keep.shape)}")
