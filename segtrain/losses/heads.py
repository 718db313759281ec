"""One batch for each head: logits and target brought to one size, label maps opened up for the sigmoid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from segtrain.config.loss import AuxiliaryConfig, LossConfig
from segtrain.errors import ConfigError
from segtrain.kernels.upsample import CoarseLogits
from segtrain.losses.class_sums import check_labels

Head: TypeAlias = Tensor | CoarseLogits


def split_heads(logits: Head | Sequence[Head], auxiliary: AuxiliaryConfig | None) -> tuple[Head, ...]:
    """Return the logits of each head, the main one first.

    Without gradients (an evaluation) a single tensor is the main head alone, as models give it then.

    Raises:
        ConfigError: several heads without `auxiliary`, or another number of them than it has weights.
    """
    if isinstance(logits, Head):
        if auxiliary is not None and torch.is_grad_enabled():
            raise ConfigError(
                f"loss.auxiliary has weights for {len(auxiliary.weights)} heads, but the model gave one tensor of "
                "logits: return a list, the main head first, or drop loss.auxiliary."
            )
        return (logits,)
    heads = tuple(logits)
    if auxiliary is None:
        raise ConfigError(
            f"the model gave a list of {len(heads)} logits: set loss.auxiliary.weights to one weight for each (such as "
            "[1.0, 0.4]), or have the model return the main head alone."
        )
    if len(heads) != len(auxiliary.weights):
        raise ConfigError(
            f"the model gave {len(heads)} logits and loss.auxiliary.weights holds {len(auxiliary.weights)}: one weight "
            "for each, the main head first."
        )
    return heads


def as_read(head: Head, target: Tensor, *, fused_upsample: bool) -> Head:
    """Return one head's logits as the sums read them: with `fused_upsample` as coarse ones, which stand for its size.

    Raises:
        ConfigError: coarse logits without `fused_upsample`.
        ValueError: coarse logits that stand for another size than the target's.
    """
    if isinstance(head, CoarseLogits):
        if not fused_upsample:
            raise ConfigError(
                "the model gave coarse logits, which the loss enlarges itself with loss.fused_upsample: true: set it, "
                "or have the model give logits at the size of the image."
            )
        if head.crop != tuple(target.shape[-2:]):
            raise ValueError(
                f"coarse logits stand for {list(head.crop)} pixels, and the target has {list(target.shape[-2:])}"
            )
        return head
    if not fused_upsample or head.dim() != 4:
        return head
    size = (target.shape[-2], target.shape[-1])
    return CoarseLogits(head, size, size)


def fit_head(
    logits: Head,
    target: Tensor,
    pixel_weight: Tensor | None,
    *,
    config: LossConfig,
    is_main: bool,
    num_classes: int,
    ignore_index: int,
) -> tuple[Head, Tensor, Tensor | None]:
    """Return logits, target and pixel weight of one head in one size, the target in the shape of the activation.

    Raises:
        ValueError: a main head that is not of the target's size with `resize: target`.
        DataError: a label out of range (seen here on the CPU only, and only with sigmoid).
    """
    if config.activation == "sigmoid" and target.dim() == 3:
        several = num_classes > 1
        target = one_hot(target, num_classes=num_classes, ignore_index=ignore_index) if several else target.unsqueeze(1)
    if config.auxiliary is None or isinstance(logits, CoarseLogits) or logits.dim() != 4:
        return logits, target, pixel_weight
    resize = config.auxiliary.resize
    if is_main and resize == "target" and logits.shape[-2:] != target.shape[-2:]:
        raise ValueError(
            f"the main head's logits {list(logits.shape)} must have the target's size {list(target.shape[-2:])} "
            "with auxiliary.resize: target; only further heads may be smaller"
        )
    return _fit_sizes(logits, target, pixel_weight, resize=resize)


def _fit_sizes(
    logits: Tensor, target: Tensor, pixel_weight: Tensor | None, *, resize: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Bring one head's logits to the target's size (bilinear), or target and pixel weight to its own (nearest)."""
    size = logits.shape[-2:]
    if size == target.shape[-2:]:
        return logits, target, pixel_weight
    if resize == "logits":
        dtype = torch.promote_types(logits.dtype, torch.float32)
        with torch.autocast(logits.device.type, enabled=False):
            larger = F.interpolate(logits.to(dtype), size=target.shape[-2:], mode="bilinear", align_corners=False)
        return larger, target, pixel_weight
    smaller = None if pixel_weight is None else _nearest(pixel_weight, size)
    return logits, _nearest(target, size), smaller


def _nearest(values: Tensor, size: torch.Size) -> Tensor:
    """Take the values at the centres of `size` equal cells: any type, `[..., H, W]`."""
    for dim, length in ((-2, size[0]), (-1, size[1])):
        centres = (torch.arange(length, device=values.device) + 0.5) * (values.shape[dim] / length)
        values = values.index_select(dim, centres.long())
    return values


def one_hot(target: Tensor, *, num_classes: int, ignore_index: int) -> Tensor:
    """Return the yes or no of each class, `[N, C, H, W]` of 0, 1 and `ignore_index`, from labels `[N, H, W]`.

    Raises:
        DataError: a label out of range (seen here on the CPU only).
    """
    if not target.is_cuda:
        check_labels(target, num_classes=num_classes, ignore_index=ignore_index)
    labels = target.long()
    dtype = torch.uint8 if 0 <= ignore_index <= 255 else torch.int64
    classes = torch.arange(num_classes, device=target.device).view(1, -1, 1, 1)
    opened = (labels.unsqueeze(1) == classes).to(dtype)
    return opened.masked_fill_((labels == ignore_index).unsqueeze(1), ignore_index)
