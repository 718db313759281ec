"""The heart of the losses: a few per-image, per-class sums over the pixels, from one read of the logits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from segtrain.kernels import class_sums as ops
from segtrain.kernels.labels import check_labels, count, narrow
from segtrain.kernels.launch import MOST_CLASSES
from segtrain.kernels.request import PREDICTIONS, SUMS, Inputs, Request, encode_mining
from segtrain.kernels.triton_available import triton_reason, warn_of_fallback
from segtrain.losses.hard_examples import HardExamples
from segtrain.losses.plain_sums import plain_sums

Activation = Literal["softmax", "sigmoid"]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
__all__ = [
    "PREDICTIONS",
    "SUMS",
    "Activation",
    "ClassSums",
    "by_name",
    "check_inputs",
    "check_labels",
    "class_sums",
    "is_fused",
    "target_pixels",
]


@dataclass(frozen=True, eq=False)
class ClassSums:
    """Sums over the valid pixels i with label y_i, one row per image: float64 `[N, C]`, so that counts stay exact.

    A pixel weight multiplies each pixel in all of them. A sum that was not wanted is None. Only the pixel terms
    (`kept`, `cross_entropy`, `focal`, `log_mass`) leave out the pixels that hard-example mining drops.

    `predicted` and `correct` are counts for telemetry, without a gradient: of all valid pixels, whatever their weight
    and mining, by the largest of the raw logits (without shift and margin), of equal ones the first, as torch.argmax.

    With sigmoid every class has a label of its own at each pixel: "y=c" then reads "the target of c is 1", and the
    `..._negatives` are the same sums over the valid pixels whose target of c is 0, with 1 − p_c in place of p_c.
    """

    pixels: Tensor  # Σ [y=c]
    kept: Tensor  # Σ [y=c] over the kept pixels; equal to `pixels` without mining
    probability: Tensor | None = None  # Σ p_c
    squared_probability: Tensor | None = None  # Σ p_c²
    intersection: Tensor | None = None  # Σ [y=c] p_c
    cross_entropy: Tensor | None = None  # Σ_{y=c} −log p_c
    focal: Tensor | None = None  # Σ_{y=c} (1 − p_c)^γ (−log p_c)
    log_mass: Tensor | None = None  # Σ −log p_c over all kept pixels, softmax only
    negatives: Tensor | None = None  # sigmoid only, as the next three
    kept_negatives: Tensor | None = None
    cross_entropy_negatives: Tensor | None = None
    focal_negatives: Tensor | None = None
    predicted: Tensor | None = None  # softmax only: number of valid pixels whose largest logit is that of c
    correct: Tensor | None = None  # of these, those with y=c


def class_sums(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    activation: Activation = "softmax",
    gamma: float | Sequence[float] = 2.0,
    shift: Tensor | None = None,
    margin: Tensor | None = None,
    scale: float = 1.0,
    pixel_weight: Tensor | None = None,
    keep: Tensor | HardExamples | None = None,
    wanted: Collection[str] | None = None,
) -> ClassSums:
    """Sum what the losses are made of, per image and class; differentiable (once) in the logits.

    p is the softmax (or sigmoid) of scale · (z + shift − margin at the label).

    Args:
        logits: z, float `[N, C, H, W]`, any strides; float16 and bfloat16 are computed in float32. Never changed.
        target: integer `[N, H, W]`, labels in [0, C) or `ignore_index`, of any integer type. Never changed. With
            sigmoid `[N, C, H, W]` (or `[N, H, W]` for C = 1) of 0, 1 and `ignore_index`.
        ignore_index: label of the pixels that count nowhere; they get an exactly zero gradient.
        activation: `softmax` over the classes, or `sigmoid` of each.
        gamma: exponent γ ≥ 0 of `focal`: one, or one for each class (of the label, with softmax).
        shift: float `[C]`, added to the logits of every pixel (a prior).
        margin: float `[C]`, taken from the logit of the label (with sigmoid: where the target is 1).
        scale: > 0, multiplies the logits after both.
        pixel_weight: float `[N, H, W]`, a constant factor of each pixel in every sum.
        keep: bool in the shape of `target`, or the rule that makes it: pixels that stay in the pixel terms.
        wanted: names of the sums to compute, of SUMS and PREDICTIONS; the others are None and cost nothing. Default:
            all of SUMS that there are. On CUDA the predictions come from the same read; on the CPU from one more.

    Returns:
        ClassSums of float64 `[N, C]` tensors.

    Raises:
        ValueError: shapes or types that do not fit, or an unknown name in `wanted`.
        DataError: a label out of range (on the CPU only: on CUDA that would stall the device, and the counts become
            NaN instead, so that no loss made of them looks right).

    On CUDA, Triton kernels do this in two reads and one write of the logits, forward and backward, for float16,
    bfloat16 and float32 up to 1024 classes. Everything else (float64, more classes, a GPU that Triton does not know,
    other devices) takes the plain sums of `plain_sums`, which are plain torch, and slower.
    """
    gammas = (float(gamma),) if isinstance(gamma, (int, float)) else tuple(float(value) for value in gamma)
    if wanted is None:
        wanted = SUMS if activation == "softmax" else SUMS[:-1]
    if activation == "sigmoid" and target.dim() == 3:
        target = target.unsqueeze(1)
        keep = keep.unsqueeze(1) if isinstance(keep, Tensor) else keep
    check_inputs(logits, target, pixel_weight=pixel_weight, keep=keep, activation=activation)
    _check_settings(logits.shape[1], gamma=gammas, shift=shift, margin=margin, wanted=wanted, activation=activation)
    rule = keep if isinstance(keep, HardExamples) else None
    request = Request(
        wanted=tuple(name for name in SUMS if name in wanted),
        sigmoid=activation == "sigmoid",
        ignore_index=ignore_index,
        gamma=gammas,
        scale=float(scale),
        mining=encode_mining(rule),
        predictions=not set(wanted).isdisjoint(PREDICTIONS),
    )
    inputs = Inputs(
        logits=logits,
        target=target,
        shift=None if shift is None else shift.detach(),
        margin=None if margin is None else margin.detach(),
        pixel_weight=None if pixel_weight is None else pixel_weight.detach(),
        keep=keep if isinstance(keep, Tensor) else None,
    )
    make = fused_sums if is_fused(logits.device, logits.dtype, logits.shape[1]) else plain_sums
    return ClassSums(**make(inputs, request))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_fused(device: torch.device, dtype: torch.dtype, num_classes: int) -> bool:
    """Whether the fused operator has kernels for such logits; where a GPU cannot run them, warn of it once."""
    if device.type == "cpu":
        return num_classes < torch.iinfo(torch.int16).max  # in which the kernels hold labels
    if device.type != "cuda" or dtype == torch.float64 or num_classes > MOST_CLASSES:
        return False
    reason = triton_reason(device)
    if reason is not None:
        warn_of_fallback(reason)
    return reason is None


def fused_sums(inputs: Inputs, request: Request) -> dict[str, Tensor]:
    """Return what `plain_sums` does, by the fused operator."""
    sums, counts, _ = ops.class_sums(
        inputs.logits,
        inputs.target,
        inputs.shift,
        inputs.margin,
        inputs.pixel_weight,
        inputs.keep,
        [SUMS.index(name) for name in request.wanted],
        request.sigmoid,
        request.ignore_index,
        request.gamma,
        request.scale,
        request.mining,
        request.predictions,
    )
    return by_name(sums, counts, request)


def by_name(sums: Tensor, counts: Tensor, request: Request) -> dict[str, Tensor]:
    """Return what the operators give, sums `[K, N, C]` and counts `[2 or 4, N, C]`, as the fields of `ClassSums`."""
    names = ops.names_of_counts(sigmoid=request.sigmoid, predictions=request.predictions)
    names += ops.names_of_sums(request.wanted, sigmoid=request.sigmoid)
    return dict(zip(names, (*counts.unbind(), *sums.unbind()), strict=True))


def target_pixels(target: Tensor, *, num_classes: int, ignore_index: int, pixel_weight: Tensor | None = None) -> Tensor:
    """Return `ClassSums.pixels` of a target `[N, H, W]` alone: float64 `[N, C]`."""
    if target.is_cuda and pixel_weight is None and is_fused(target.device, torch.float32, num_classes):
        from segtrain.kernels.triton_softmax import count_largest

        labels = target.contiguous()
        with torch.cuda.device(target.device):
            return count_largest(labels, labels, num_classes=num_classes, ignore_index=ignore_index)[0]
    labels = narrow(target, num_classes=num_classes, ignore_index=ignore_index).flatten(1)
    valid = labels != ignore_index
    buckets = labels.masked_fill(~valid, num_classes)
    weight = None if pixel_weight is None else torch.where(valid, pixel_weight.detach().flatten(1).double(), 0.0)
    if not labels.is_cuda:
        return count(buckets, num_buckets=num_classes, weight=weight)
    weight = valid.double() if weight is None else weight
    return torch.stack([torch.where(buckets == c, weight, 0.0).sum(1) for c in range(num_classes)], dim=1)


def check_inputs(
    logits: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None,
    activation: Activation,
    keep: Tensor | HardExamples | None = None,
) -> None:
    """Raise ValueError where shapes or types are not those of `class_sums`; a sigmoid target is `[N, C, H, W]` here."""
    if logits.dim() != 4 or logits.dtype not in DTYPES:
        raise ValueError(
            f"logits must be float16, bfloat16, float32 or float64 [N, C, H, W], found {logits.dtype} "
            f"{list(logits.shape)}"
        )
    pixels = [logits.shape[0], *logits.shape[2:]]
    expected = pixels if activation == "softmax" else list(logits.shape)
    names = "[N, H, W]" if activation == "softmax" else "[N, C, H, W]"
    if list(target.shape) != expected or target.is_floating_point() or target.dtype == torch.bool:
        raise ValueError(
            f"target must be integer {names} = {expected} to fit logits {list(logits.shape)} with {activation}, "
            f"found {target.dtype} {list(target.shape)}"
        )
    if pixel_weight is not None and list(pixel_weight.shape) != pixels:
        raise ValueError(f"pixel_weight must be [N, H, W] = {pixels}, found {list(pixel_weight.shape)}")
    if isinstance(keep, Tensor) and (list(keep.shape) != expected or keep.dtype != torch.bool):
        raise ValueError(f"keep must be bool {names} = {expected}, found {keep.dtype} {list(keep.shape)}")


def _check_settings(
    num_classes: int,
    *,
    gamma: tuple[float, ...],
    shift: Tensor | None,
    margin: Tensor | None,
    wanted: Collection[str],
    activation: Activation,
) -> None:
    unknown = set(wanted) - {*SUMS, *PREDICTIONS}
    if unknown:
        raise ValueError(f"unknown sums {sorted(unknown)}: choose from {', '.join((*SUMS, *PREDICTIONS))}")
    if activation == "sigmoid" and "log_mass" in wanted:
        raise ValueError("log_mass belongs to softmax: with sigmoid there is no mass that the classes share")
    if activation == "sigmoid" and not set(wanted).isdisjoint(PREDICTIONS):
        raise ValueError(
            f"{' and '.join(PREDICTIONS)} belong to softmax: with sigmoid a pixel can have several classes"
        )
    if len(gamma) not in (1, num_classes) or min(gamma) < 0:
        raise ValueError(f"gamma must be one number >= 0, or one for each of the {num_classes} classes, found {gamma}")
    for name, vector in (("shift", shift), ("margin", margin)):
        if vector is not None and list(vector.shape) != [num_classes]:
            raise ValueError(f"{name} must be [C] = [{num_classes}], found {list(vector.shape)}")
