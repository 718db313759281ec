"""The boundary loss: probabilities weighted by their distance from where the class really ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from segtrain.losses.class_sums import Activation
from segtrain.losses.own_pass import (
    checked_target,
    chosen_classes,
    empty_gradient,
    equals,
    is_channels_last,
    nothing,
    row_chunks,
    through_activation,
    valid_weight,
    working_dtype,
)


def boundary(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    distances: Tensor | None = None,
    classes: Sequence[int] | None = None,
    activation: Activation = "softmax",
    pixel_weight: Tensor | None = None,
) -> Tensor:
    """Boundary loss (Kervadec 2019, eq. 5): Σ_i Σ_c φ_ic p_ic over the valid pixels i, divided by their number.

    φ is the signed distance to the boundary of class c in pixels, negative inside. The sum runs over the `classes`
    (the paper leaves out the background), and is not divided by how many there are. The loss has no lower bound of 0:
    it is smallest, and negative, where the classes are met exactly. Alone it lets rare classes vanish, since it
    is near 0 for an empty prediction of a small object: add it to a region term with a weight that rises from 0, as
    the paper does. Once differentiable; in chunks, with nothing of the logits' size beside the gradient.

    Args:
        logits: float `[N, C, H, W]`, any strides; float16 and bfloat16 are computed in float32.
        target: integer `[N, H, W]`, labels in [0, C) or `ignore_index`; with sigmoid `[N, C, H, W]` (or `[N, H, W]`
            for C = 1) of 0, 1 and `ignore_index`.
        ignore_index: label of the pixels that count nowhere and get an exactly zero gradient.
        distances: float `[N, K, H, W]`, the maps φ of the K classes in the order of `classes`, as the loader's workers
            make them (`segtrain.data.distance.signed_distance`). None: made here, on the CPU, which is slower (and on
            CUDA waits for the device).
        classes: which classes; None for all.
        activation: `softmax`, or `sigmoid`: p = σ(z), and the sum is divided by the valid (pixel, channel) pairs of
            the K classes over K, so by the pixels where all is valid.
        pixel_weight: float `[N, H, W]`, a constant factor of each pixel, in the sum and in what it is divided by.

    Returns:
        float64 `[2]`: the sum, and the number of valid pixels (or their weight), which depends on the target alone.
        The loss is the first over the second, 0 where that is 0. Both may be added over images, micro-batches and
        ranks.

    Raises:
        ValueError: shapes, types or settings that do not fit.
        DataError: a label out of range (seen here on the CPU only).
    """
    target = checked_target(logits, target, ignore_index=ignore_index, activation=activation, pixel_weight=pixel_weight)
    chosen = chosen_classes(classes, num_classes=logits.shape[1])
    expected = [logits.shape[0], len(chosen), *logits.shape[2:]]
    if distances is not None and (list(distances.shape) != expected or not distances.is_floating_point()):
        found = f"{distances.dtype} {list(distances.shape)}"
        raise ValueError(f"distances must be float [N, K, H, W] = {expected}, one map for each class, found {found}")
    if logits.numel() == 0:
        return nothing(logits)
    if distances is None:
        distances = make_distances(target, num_classes=logits.shape[1], ignore_index=ignore_index, classes=chosen)
    distances = distances.detach().to(logits.device)
    weight = valid_weight(target, ignore_index=ignore_index, pixel_weight=pixel_weight, dtype=working_dtype(logits))
    index = torch.tensor(chosen).to(logits.device, non_blocking=True)  # a list as an index would wait for the device
    if activation == "sigmoid":
        weight = weight.index_select(1, index)
    with torch.autocast(logits.device.type, enabled=False):
        total = _Boundary.apply(logits, target, distances, weight, index, ignore_index, activation == "sigmoid")
    pixels = weight.sum(dtype=torch.float64)
    return torch.stack([total, pixels if activation == "softmax" else pixels / len(chosen)])


def make_distances(
    target: Tensor, *, num_classes: int, ignore_index: int, classes: Sequence[int] | None = None
) -> Tensor:
    """Return the signed distance maps of a target, float16 `[N, K, H, W]` on its device, made on the CPU.

    Args:
        target: integer `[N, H, W]` of class labels, or `[N, C, H, W]` of 0, 1 and `ignore_index`.
        num_classes, ignore_index, classes: as for `segtrain.data.distance.signed_distance`.
    """
    chosen = chosen_classes(classes, num_classes=num_classes)
    maps = [_image_maps(labels, num_classes, ignore_index, chosen) for labels in target.cpu().numpy()]
    return torch.from_numpy(np.stack(maps)).to(target.device)


def _image_maps(labels: NDArray[Any], num_classes: int, ignore_index: int, classes: list[int]) -> NDArray[np.float16]:
    from segtrain.data.distance import signed_distance  # here, as it brings OpenCV in

    if labels.ndim == 2:
        return signed_distance(labels, num_classes=num_classes, ignore_index=ignore_index, classes=classes)
    channels = [signed_distance(labels[c], num_classes=2, ignore_index=ignore_index, classes=[1]) for c in classes]
    return np.concatenate(channels)


class _Boundary(torch.autograd.Function):
    """Σ weight φ p; the probabilities are computed again for the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        distances: Tensor,
        weight: Tensor,
        classes: Tensor,
        ignore_index: int,
        sigmoid: bool,
    ) -> Tensor:
        ctx.save_for_backward(logits, target, distances, weight, classes)
        ctx.ignore_index, ctx.sigmoid = ignore_index, sigmoid
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for image, rows in row_chunks(logits):
            scores = logits[image, :, rows].to(weight.dtype)
            probability = (scores.sigmoid() if sigmoid else scores.softmax(0)).index_select(0, classes)
            labels = target[image].index_select(0, classes) if sigmoid else target[image]
            costs = probability.mul_(distances[image, :, rows].to(weight.dtype))
            # a selection first: 0 times the NaN of an ignored pixel is NaN
            costs.masked_fill_(equals(labels[..., rows, :], ignore_index), 0.0).mul_(weight[image, ..., rows, :])
            total += costs.sum(dtype=torch.float64)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, distances, weight, classes = ctx.saved_tensors
        gradient = empty_gradient(
            logits.shape, dtype=logits.dtype, device=logits.device, channels_last=is_channels_last(logits)
        )
        scaled = weight * grad_total.to(weight.dtype)
        for image, rows in row_chunks(logits):
            scores = logits[image, :, rows].to(weight.dtype)
            slopes = torch.zeros_like(scores)
            of_chosen = distances[image, :, rows].to(weight.dtype) * scaled[image, ..., rows, :]
            slopes.index_copy_(0, classes, of_chosen)
            through_activation(slopes, scores, sigmoid=ctx.sigmoid)
            ignored = equals(target[image, ..., rows, :], ctx.ignore_index)
            gradient[image, :, rows] = slopes.masked_fill_(ignored, 0.0)
        return gradient, None, None, None, None, None, None
