"""The Lovász loss: the convex extension of the Jaccard loss, from errors sorted (or binned) class by class."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from segtrain.losses.class_sums import Activation
from segtrain.losses.lovasz_steps import class_losses
from segtrain.losses.own_pass import (
    checked_target,
    empty_gradient,
    equals,
    is_channels_last,
    nothing,
    row_chunks,
    through_activation,
    working_dtype,
)

Per = Literal["batch", "image"]


def lovasz(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    activation: Activation = "softmax",
    per: Per = "batch",
    bins: int | None = None,
) -> Tensor:
    """Lovász-softmax (Berman 2018, eqs. 8 and 9, Alg. 1): the mean over the classes present in the target.

    For a class c with the errors e_i = 1 − p_ic where y_i = c and p_ic elsewhere, sorted downwards, the loss is
    Σ_i e_i (J_i − J_{i−1}), J_i being the Jaccard loss 1 − IoU if the first i pixels were all wrong. It equals
    1 − IoU where all p are 0 or 1. The J are constants of the order, so the gradient in e_i is J_i − J_{i−1} ≥ 0.

    Pixels below the smallest error of the class's own pixels have J_i = J_{i−1} = 1: on the CPU they are not sorted.
    Of equal errors the first by position comes first. Once differentiable. Memory: one tensor of the logits' size
    (float32 at least) between forward and backward, and a few of a single class.

    With `bins` B the errors are not sorted but counted in B equal intervals of [0, 1]. The order across the intervals
    is exact, so the J_i − J_{i−1} of an interval sum to what they do in the sorted loss; within it they are shared
    out evenly among the pixels of the class and among the others (the mean of "its own first" and "the others
    first"). Both losses are therefore, interval by interval, the same mass times means of errors at most 1/B
    apart, and the masses sum to 1: |loss_B − loss| ≤ 1/B for every class, and for the mean. Its gradient
    is exact for the value that it gives, as long as no error leaves its interval. Counting takes the same time
    whatever the model predicts; sorting takes less of it at first, when few pixels reach the smallest error, and more
    later: at 4×19×512×512 on one CPU core 2 to 8 times a cross entropy, where counting takes 4.

    Args:
        logits: float `[N, C, H, W]`, any strides; float16 and bfloat16 are computed in float32.
        target: integer `[N, H, W]`, labels in [0, C) or `ignore_index`; with sigmoid `[N, C, H, W]` (or `[N, H, W]`
            for C = 1) of 0, 1 and `ignore_index`.
        ignore_index: label of the pixels that count nowhere and get an exactly zero gradient.
        activation: `softmax`, or `sigmoid`: the same loss on each channel's σ(z) (not the Lovász hinge, which is
            another loss, on logits), mean over the channels with a positive pixel.
        per: sort over the `batch`, or in each `image` and take the mean over the (image, class) pairs present.
        bins: number of intervals, or None to sort exactly.

    Returns:
        float64 `[2]`: the sum of the losses, and the number of classes (or of pairs) present, which depends on the
        target alone. The loss is the first over the second, 0 where that is 0. Across images (with `per: image`),
        micro-batches and ranks both may be added; a batch-level loss is then the mean of those of the parts.

    Raises:
        ValueError: shapes, types or settings that do not fit.
        DataError: a label out of range (seen here on the CPU only).
    """
    if bins is not None and bins < 1:
        raise ValueError(f"bins must be at least 1, or None to sort exactly, found {bins}")
    if per not in ("batch", "image"):
        raise ValueError(f"per must be batch or image, found {per!r}")
    target = checked_target(logits, target, ignore_index=ignore_index, activation=activation)
    if logits.numel() == 0:
        return nothing(logits)
    with torch.autocast(logits.device.type, enabled=False):
        keep = torch.is_grad_enabled() and logits.requires_grad
        total, pairs = _Lovasz.apply(logits, target, ignore_index, activation == "sigmoid", per == "image", bins, keep)
    return torch.stack([total, pairs])


class _Lovasz(torch.autograd.Function):
    """The gradient is made in the forward pass, where the order is known, and scaled in the backward pass.

    One buffer [C, N, H, W] holds the probabilities, then class by class the gradient in them, then that in the logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        ignore_index: int,
        sigmoid: bool,
        per_image: bool,
        bins: int | None,
        keep_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        buffer = _probabilities(logits, sigmoid)
        num_classes, num_images = buffer.shape[:2]
        rows = num_images if per_image else 1
        losses = torch.zeros(rows, num_classes, dtype=torch.float64, device=logits.device)
        present = torch.zeros(rows, num_classes, dtype=torch.bool, device=logits.device)
        valid = ~equals(target, ignore_index)
        for c in range(num_classes):
            mask = valid[:, c] if sigmoid else valid
            own = (equals(target[:, c], 1) if sigmoid else equals(target, c)) & mask
            own, mask = own.reshape(rows, -1), mask.reshape(rows, -1)
            present[:, c] = own.view(torch.uint8).amax(1)  # as `any`, which takes ten times as long
            losses[:, c] = class_losses(buffer[c].view(rows, -1), own, mask, bins=bins)
        if keep_gradient:
            _to_logits(buffer, logits, target, ignore_index, sigmoid)
            ctx.save_for_backward(buffer)
            ctx.dtype, ctx.channels_last = logits.dtype, is_channels_last(logits)
        pairs = present.sum(dtype=torch.float64)
        ctx.mark_non_differentiable(pairs)
        return losses.sum(), pairs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (buffer,) = ctx.saved_tensors
        gradient = buffer.transpose(0, 1)
        room = empty_gradient(gradient.shape, dtype=ctx.dtype, device=buffer.device, channels_last=ctx.channels_last)
        # multiplied in the working type, then cast: half precision would flush small gradients to 0
        if room.dtype == buffer.dtype:
            torch.mul(gradient, grad_total.to(buffer.dtype), out=room)
        else:
            room.copy_(gradient * grad_total.to(buffer.dtype))
        return room, None, None, None, None, None, None


def _probabilities(logits: Tensor, sigmoid: bool) -> Tensor:
    """Return softmax or sigmoid as a contiguous `[C, N, H, W]`."""
    images, channels, height, width = logits.shape
    buffer = torch.empty(channels, images, height, width, dtype=working_dtype(logits), device=logits.device)
    for image, rows in row_chunks(logits):
        scores = logits[image, :, rows].to(buffer.dtype)
        buffer[:, image, rows] = scores.sigmoid() if sigmoid else scores.softmax(0)
    return buffer


def _to_logits(buffer: Tensor, logits: Tensor, target: Tensor, ignore_index: int, sigmoid: bool) -> None:
    """Turn the gradient in the probabilities into that in the logits."""
    for image, rows in row_chunks(logits):
        gradient = buffer[:, image, rows]
        probability = through_activation(gradient, logits[image, :, rows].to(buffer.dtype), sigmoid=sigmoid)
        # The gradient of an ignored pixel is 0 already, but 0 times NaN is not.
        if logits.is_cuda or bool(probability.sum().isnan()):
            gradient.masked_fill_(equals(target[image, ..., rows, :], ignore_index), 0.0)
