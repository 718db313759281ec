"""What the losses with a pass of their own over the logits share: checked inputs, masks of labels, chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from segtrain.losses.class_sums import Activation, check_inputs, check_labels

SMALL_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
CPU_CHUNK = 1 << 17  # elements of the logits at a time: what stays in a cache
CHUNK = 1 << 25


def checked_target(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int,
    activation: Activation = "softmax",
    pixel_weight: Tensor | None = None,
) -> Tensor:
    """Return the target as `[N, H, W]` (softmax) or `[N, C, H, W]` (sigmoid), of an integer type that torch compares.

    Raises:
        ValueError: shapes or types that do not fit.
        DataError: a label out of range (seen on the CPU only: on CUDA it would stall the device).
    """
    if activation not in ("softmax", "sigmoid"):
        raise ValueError(f"activation must be softmax or sigmoid, found {activation!r}")
    if activation == "sigmoid" and target.dim() == 3:
        target = target.unsqueeze(1)
    check_inputs(logits, target, pixel_weight=pixel_weight, activation=activation)
    if not logits.is_cuda:
        check_labels(target, num_classes=logits.shape[1] if activation == "softmax" else 2, ignore_index=ignore_index)
    return target if target.dtype in SMALL_INTEGERS else target.long()


def chosen_classes(classes: Sequence[int] | None, *, num_classes: int) -> list[int]:
    """Return the classes that a loss runs over, all where None is given; raises ValueError for wrong ones."""
    if classes is None:
        return list(range(num_classes))
    wrong = [c for c in classes if not 0 <= c < num_classes]
    if wrong or not classes or len(set(classes)) < len(classes):
        raise ValueError(f"classes must be distinct numbers from 0 to {num_classes - 1}, found {list(classes)}")
    return list(classes)


def equals(target: Tensor, value: int) -> Tensor:
    """Whether each label is `value`: bool in the target's shape, right also where the type cannot hold the value."""
    if target.device.type == "cpu":
        return torch.from_numpy(np.asarray(target.numpy() == value))  # 20 times faster than torch's
    limits = torch.iinfo(target.dtype)
    if not limits.min <= value <= limits.max:  # torch would wrap it: uint8 == -1 is uint8 == 255
        return torch.zeros(target.shape, dtype=torch.bool, device=target.device)
    return target == value


def nothing(logits: Tensor) -> Tensor:
    """Return the statistics `[2]` of no pixel at all: zeros, part of the graph."""
    return logits.double().sum() * torch.zeros(2, dtype=torch.float64, device=logits.device)


def valid_weight(target: Tensor, *, ignore_index: int, pixel_weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the weight of each label, in the target's shape: the pixel's weight, or 1, and 0 where it is ignored."""
    valid = ~equals(target, ignore_index)
    if pixel_weight is None:
        return valid.to(dtype)
    weight = pixel_weight.detach().to(dtype)
    return torch.where(valid, weight if target.dim() == 3 else weight.unsqueeze(1), 0.0)


def row_chunks(logits: Tensor) -> Iterator[tuple[int, slice]]:
    """Yield (image, rows) that cut logits `[N, C, H, W]` into pieces of bounded size."""
    images, channels, height, width = logits.shape
    limit = CPU_CHUNK if logits.device.type == "cpu" else CHUNK
    rows = max(1, limit // max(1, channels * width))
    for image in range(images):
        for start in range(0, height, rows):
            yield image, slice(start, min(start + rows, height))


def through_activation(gradient: Tensor, scores: Tensor, *, sigmoid: bool) -> Tensor:
    """Turn the gradient d in the probabilities `[C, ...]`, in place, into that in the scores; return the probabilities.

    That is p (d − ⟨p, d⟩) with softmax, and p (1 − p) d with sigmoid.
    """
    probability = scores.sigmoid() if sigmoid else scores.softmax(0)
    gradient.mul_(probability)
    if sigmoid:
        gradient.mul_(1 - probability)
    else:
        gradient.sub_(probability * gradient.sum(0))
    return probability


def working_dtype(logits: Tensor) -> torch.dtype:
    """Return float64 for float64 logits, else float32."""
    return torch.promote_types(logits.dtype, torch.float32)


def empty_gradient(
    logits_shape: torch.Size, *, dtype: torch.dtype, device: torch.device, channels_last: bool
) -> Tensor:
    """Return room for a gradient `[N, C, H, W]` in the memory format of the logits."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(logits_shape, dtype=dtype, device=device, memory_format=memory_format)


def is_channels_last(logits: Tensor) -> bool:
    """Whether the channels lie next to each other, and the tensor is not an ordinary contiguous one as well."""
    return logits.is_contiguous(memory_format=torch.channels_last) and not logits.is_contiguous()
