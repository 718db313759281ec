"""The operator `segtrain::confusion_counts`: pairs of label and largest logit, from one read of the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from segtrain.kernels import confusion_cpu
from segtrain.kernels.confusion_cpu import class_dtype
from segtrain.kernels.triton_available import triton_reason, warn_of_fallback
from segtrain.kernels.upsample import CoarseLogits, Size, enlarge, strips


class ConfusionCounts(NamedTuple):
    """What a batch adds to a confusion matrix.

    On CUDA wrong values cannot raise without a wait for the device: their pixels are counted instead, and whoever
    fetches the counts checks that there are none. On the CPU they have raised, and `wrong` is 0.
    """

    matrix: Tensor  # int64 [N, C, C], for each image; rows are labels, columns predictions
    wrong: Tensor  # int64 [N, 2]: pixels with a label out of range; pixels with a prediction out of range
    prediction: Tensor | None  # [N, H, W], uint8 up to 256 classes, int16 above


@torch.no_grad()
def confusion_update(
    values: Tensor | CoarseLogits,
    target: Tensor,
    *,
    num_classes: int,
    ignore_index: int = 255,
    shift: Tensor | None = None,
    size: Size | None = None,
    with_prediction: bool = False,
) -> ConfusionCounts:
    """Count a batch: integer maps as they are, of logits the largest (the first of equals, NaN above all).

    Args:
        values: classes `[N, H, W]` (integers of any type), logits `[N, C, h, w]` (floats, any strides), or coarse ones,
            which are enlarged on the way in: full-size logits never exist.
        target: `[N, H, W]` integers of any type; pixels equal to `ignore_index` count nowhere.
        shift: floats `[C]`, added to the logits of every pixel first.
        size: (height, width) of the target, to which logits of another size are enlarged (or made smaller): bilinear,
            corners not aligned.
        with_prediction: return the classes of the logits, too.

    Raises:
        ValueError: shapes or types that do not fit, and on the CPU a prediction out of range.
        DataError: a label out of range (on the CPU).
    """
    crop = None
    covers = size or _shape(target)
    if isinstance(values, Tensor):
        tensor = values.detach()
    elif size in (None, values.crop):
        tensor, crop, covers = values.values.detach(), values.crop, values.size
    else:  # enlarged twice: not what one pass can do
        tensor = values.detach().full()
    _check(tensor, target, num_classes=num_classes, crop=crop, size=size)
    counts, prediction = confusion_counts(
        tensor, target.to(tensor.device), shift, list(covers), num_classes, ignore_index, with_prediction
    )
    matrix = counts[:, :-2].view(len(counts), num_classes, num_classes)
    return ConfusionCounts(matrix, counts[:, -2:], prediction if with_prediction else None)


@torch.library.custom_op("segtrain::confusion_counts", mutates_args=())
def confusion_counts(
    values: Tensor,
    target: Tensor,
    shift: Tensor | None,
    size: Sequence[int],
    num_classes: int,
    ignore_index: int,
    with_prediction: bool,
) -> tuple[Tensor, Tensor]:
    """Return the counts int64 `[N, C·C + 2]` (see `ConfusionCounts`) and the prediction, empty where not asked for.

    The target is the top left part of the `size` that logits are enlarged to.
    """
    covers = (size[0], size[1])
    with torch.autocast(values.device.type, enabled=False):
        if values.device.type == "cpu":
            return _on_cpu(values.detach(), target, shift, covers, num_classes, ignore_index, with_prediction)
        reason = triton_reason(values.device)
        if reason is None:
            from segtrain.kernels import triton_confusion

            with torch.cuda.device(values.device):
                return triton_confusion.count(values, target, shift, covers, num_classes, ignore_index, with_prediction)
        if values.is_cuda:
            warn_of_fallback(reason)
        return plain_counts(values, target, shift, covers, num_classes, ignore_index, with_prediction)


@confusion_counts.register_fake
def _(
    values: Tensor,
    target: Tensor,
    shift: Tensor | None,
    size: Sequence[int],
    num_classes: int,
    ignore_index: int,
    with_prediction: bool,
) -> tuple[Tensor, Tensor]:
    counts = values.new_empty((values.shape[0], num_classes**2 + 2), dtype=torch.int64)
    shape = target.shape if with_prediction else (0,)
    return counts, values.new_empty(shape, dtype=class_dtype(num_classes))


def plain_counts(
    values: Tensor,
    target: Tensor,
    shift: Tensor | None,
    size: Size,
    num_classes: int,
    ignore_index: int,
    with_prediction: bool,
) -> tuple[Tensor, Tensor]:
    """Return what `confusion_counts` does, by torch's own operators: any device, no wait for it, nothing raised."""
    found = values.long()
    if values.is_floating_point():
        found = _plain_largest(values, shift, size, _shape(target))
    labels = target.long()
    valid = labels != ignore_index
    wrong = valid & ((labels < 0) | (labels >= num_classes))
    stray = valid & ~wrong & ((found < 0) | (found >= num_classes))
    cells = num_classes**2
    index = (labels * num_classes + found).masked_fill(stray, cells + 1).masked_fill(wrong, cells)
    index = index.masked_fill(~valid, cells + 2).flatten(1)
    counts = torch.zeros(len(labels), cells + 3, dtype=torch.int64, device=values.device)
    counts.scatter_add_(1, index, torch.ones_like(index))
    prediction = found.to(class_dtype(num_classes)) if with_prediction else _nothing(values, num_classes)
    return counts[:, :-1].contiguous(), prediction


def _on_cpu(
    values: Tensor,
    target: Tensor,
    shift: Tensor | None,
    size: Size,
    num_classes: int,
    ignore_index: int,
    with_prediction: bool,
) -> tuple[Tensor, Tensor]:
    found = values
    if values.is_floating_point() and values.shape[-2:] == torch.Size(size) == target.shape[-2:]:
        found = confusion_cpu.largest(values, shift=shift)
    elif values.is_floating_point():
        found = confusion_cpu.largest_of_enlarged(values, size=size, crop=_shape(target), shift=shift)
    matrices = confusion_cpu.count_pairs(found, target, num_classes=num_classes, ignore_index=ignore_index)
    counts = torch.cat((matrices.flatten(1), torch.zeros(len(target), 2, dtype=torch.int64)), dim=1)
    return counts, found.to(class_dtype(num_classes), copy=found is values) if with_prediction else _nothing(
        values, num_classes
    )


def _plain_largest(values: Tensor, shift: Tensor | None, size: Size, crop: Size) -> Tensor:
    """Return the argmax int64 `[N, H, W]`, of enlarged logits strip by strip."""
    added = None if shift is None else shift.to(values.device, torch.promote_types(values.dtype, torch.float32))
    if values.shape[-2:] == torch.Size(size) == torch.Size(crop):
        return (values if added is None else values + added.view(-1, 1, 1)).argmax(dim=1)
    found = torch.empty(values.shape[0], *crop, dtype=torch.int64, device=values.device)
    for strip in strips(values, crop):
        part = enlarge(values, strip, size=size, width=crop[1])
        found[strip.images, strip.rows] = (part if added is None else part + added.view(-1, 1, 1)).argmax(dim=1)
    return found


def _nothing(values: Tensor, num_classes: int) -> Tensor:
    return values.new_empty((0,), dtype=class_dtype(num_classes))


def _shape(target: Tensor) -> Size:
    return target.shape[-2], target.shape[-1]


def _check(values: Tensor, target: Tensor, *, num_classes: int, crop: Size | None, size: Size | None) -> None:
    """Raise ValueError for types or shapes that do not fit."""
    for name, tensor in (("target", target), ("prediction", values)):
        floats = name == "prediction" and values.is_floating_point()
        if (tensor.is_floating_point() and not floats) or tensor.is_complex() or tensor.dtype == torch.bool:
            raise ValueError(f"{name} must hold integers, found {tensor.dtype}")
        if tensor.ndim != 3 and not floats:
            raise ValueError(f"{name} must be [N, H, W], found {list(tensor.shape)}")
    if values.is_floating_point() and (values.ndim != 4 or values.shape[1] != num_classes):
        raise ValueError(f"logits must be [N, {num_classes}, H, W], found {list(values.shape)}")
    found = (values.shape[0], *(crop or size or values.shape[-2:]))
    if found != tuple(target.shape):
        raise ValueError(
            f"prediction {list(found)} and target {list(target.shape)} differ: "
            "resize the logits to the target, never the target to the logits"
        )
    if size is not None and not values.is_floating_point() and tuple(values.shape[-2:]) != size:
        raise ValueError(f"classes {list(values.shape)} cannot be resized to {list(size)}: give the logits")
