"""Class sums of coarse logits, as the loss calls them: checked, mined, and named."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from segtrain.kernels.request import PREDICTIONS, SUMS, Request, encode_mining
from segtrain.kernels.upsample import CoarseLogits
from segtrain.kernels.upsampled_sums import upsampled_class_sums, upsampled_mask
from segtrain.losses.class_sums import Activation, ClassSums, by_name, check_inputs, class_sums, is_fused
from segtrain.losses.hard_examples import HardExamples


def class_sums_of(
    logits: Tensor | CoarseLogits,
    target: Tensor,
    *,
    ignore_index: int,
    activation: Activation,
    gamma: Sequence[float],
    shift: Tensor | None,
    margin: Tensor | None,
    scale: float,
    pixel_weight: Tensor | None,
    keep: HardExamples | None,
    wanted: Sequence[str],
) -> ClassSums:
    """Return `class_sums` of logits, and of coarse ones those of the logits they stand for, enlarged as they are read.

    Mining ranks a whole batch: with coarse logits it reads them once more before, and goes with softmax alone.

    Raises:
        ValueError: shapes or types that do not fit, or mining with sigmoid.
        DataError: a label out of range (on the CPU).
    """
    logits = _as_read(logits)
    if isinstance(logits, Tensor):
        return class_sums(
            logits,
            target,
            ignore_index=ignore_index,
            activation=activation,
            gamma=gamma,
            shift=shift,
            margin=margin,
            scale=scale,
            pixel_weight=pixel_weight,
            keep=keep,
            wanted=wanted,
        )
    if activation == "sigmoid" and target.dim() == 3:
        target = target.unsqueeze(1)
    stand_in = logits.values.new_empty(()).expand(logits.shape)
    check_inputs(stand_in, target, pixel_weight=pixel_weight, activation=activation)
    mask = None
    if keep is not None and activation == "sigmoid":
        raise ValueError("hard-example mining of coarse logits goes with softmax alone")
    if keep is not None:
        vectors = [None if tensor is None else tensor.detach() for tensor in (shift, margin)]
        mask = upsampled_mask(
            logits.values.detach(), target, *vectors, logits.size, ignore_index, float(scale), encode_mining(keep)
        )
    request = Request(
        wanted=tuple(name for name in SUMS if name in wanted),
        sigmoid=activation == "sigmoid",
        ignore_index=ignore_index,
        gamma=tuple(gamma),
        scale=float(scale),
        predictions=not set(wanted).isdisjoint(PREDICTIONS),
    )
    sums, counts = upsampled_class_sums(
        logits.values,
        target,
        *[None if tensor is None else tensor.detach() for tensor in (shift, margin, pixel_weight)],
        mask,
        list(logits.size),
        [SUMS.index(name) for name in request.wanted],
        request.sigmoid,
        ignore_index,
        list(gamma),
        request.scale,
        request.predictions,
    )
    return ClassSums(**by_name(sums, counts, request))


def _as_read(logits: Tensor | CoarseLogits) -> Tensor | CoarseLogits:
    """Return coarse logits as a tensor where they are at full size, or where no operator enlarges them on the way."""
    if isinstance(logits, CoarseLogits) and logits.values.shape[-2:] == logits.shape[-2:]:
        return logits.values
    if isinstance(logits, Tensor) or not logits.values.is_cuda:
        return logits
    # what stands in for the kernels on a GPU wants them whole
    return logits if is_fused(logits.device, logits.dtype, logits.shape[1]) else logits.full()
