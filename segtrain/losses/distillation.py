"""Knowledge distillation: the divergence of the student's softened probabilities from a teacher's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from segtrain.losses.class_sums import Activation
from segtrain.losses.own_pass import (
    checked_target,
    empty_gradient,
    equals,
    is_channels_last,
    nothing,
    row_chunks,
    valid_weight,
    working_dtype,
)


def distillation(
    logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    temperature: float = 1.0,
    activation: Activation = "softmax",
    pixel_weight: Tensor | None = None,
) -> Tensor:
    """Distil a teacher (Hinton 2015, section 2): the mean over the valid pixels of T² KL(p_t ‖ p_s).

    p_t and p_s are the softmax of the teacher's and the student's logits over T. The factor T² keeps the size of the
    gradient, T (p_s − p_t) for each pixel, about the same for all temperatures. The labels only say which pixels
    count. Once differentiable. Works through the logits in chunks, twice: nothing of their size is held beside the
    gradient itself.

    Args:
        logits: the student's, float `[N, C, H, W]`, any strides; float16 and bfloat16 are computed in float32.
        teacher_logits: float, in the shape of `logits`, any strides, of any float type; gets no gradient.
        target: integer `[N, H, W]`, labels in [0, C) or `ignore_index`; with sigmoid `[N, C, H, W]` (or `[N, H, W]`
            for C = 1) of 0, 1 and `ignore_index`.
        ignore_index: label of the pixels that count nowhere and get an exactly zero gradient.
        temperature: T > 0.
        activation: `softmax`, or `sigmoid`: the divergence of the two-way choices σ(z / T) and 1 − σ(z / T) of each
            channel, mean over the valid (pixel, channel) pairs.
        pixel_weight: float `[N, H, W]`, a constant factor of each pixel, in the sum and in what it is divided by.

    Returns:
        float64 `[2]`: the sum of the divergences, and the number of valid pixels (or their weight), which depends on
        the target alone. The loss is the first over the second, 0 where that is 0. Both may be added over images,
        micro-batches and ranks.

    Raises:
        ValueError: shapes, types or settings that do not fit.
        DataError: a label out of range (seen here on the CPU only).
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a number above 0, found {temperature}")
    target = checked_target(logits, target, ignore_index=ignore_index, activation=activation, pixel_weight=pixel_weight)
    _check_teacher(logits, teacher_logits)
    if logits.numel() == 0:
        return nothing(logits)
    weight = valid_weight(target, ignore_index=ignore_index, pixel_weight=pixel_weight, dtype=working_dtype(logits))
    with torch.autocast(logits.device.type, enabled=False):
        ignored = equals(target, ignore_index)
        taught = teacher_logits.detach()
        total = _Distillation.apply(logits, taught, weight, ignored, float(temperature), activation == "sigmoid")
    return torch.stack([total, weight.sum(dtype=torch.float64)])


def _check_teacher(logits: Tensor, teacher_logits: Tensor) -> None:
    if teacher_logits.dim() != 4 or not teacher_logits.is_floating_point():
        found = f"{teacher_logits.dtype} {list(teacher_logits.shape)}"
        raise ValueError(f"teacher_logits must be float [N, C, H, W] as the logits are, found {found}")
    if teacher_logits.shape == logits.shape:
        return
    message = f"teacher_logits are {list(teacher_logits.shape)}, expected the shape of the logits {list(logits.shape)}"
    if teacher_logits.shape[:2] == logits.shape[:2]:
        message += ": bring them to one size first (torch.nn.functional.interpolate), as pixels are compared one by one"
    elif teacher_logits.shape[1] != logits.shape[1]:
        message += ": the teacher must tell the same classes apart"
    raise ValueError(message)


class _Distillation(torch.autograd.Function):
    """Σ weight T² KL; the probabilities are computed again for the gradient T weight (p_s − p_t)."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, teacher: Tensor, weight: Tensor, ignored: Tensor, temperature: float, sigmoid: bool
    ) -> Tensor:
        ctx.save_for_backward(logits, teacher, weight, ignored)
        ctx.temperature, ctx.sigmoid = temperature, sigmoid
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for image, rows in row_chunks(logits):
            student, taught = (_scaled(z[image, :, rows], weight.dtype, temperature) for z in (logits, teacher))
            if sigmoid:  # log σ(a) = a − softplus(a), and log(1 − σ(a)) = −softplus(a)
                loss = taught.sigmoid().mul_(taught - student).add_(softplus(student)).sub_(softplus(taught))
            else:
                student, taught = student.log_softmax(0), taught.log_softmax(0)
                loss = student.neg_().add_(taught).mul_(taught.exp_()).sum(0)
            # a selection first: 0 times the NaN of an ignored pixel is NaN
            loss = loss.masked_fill_(ignored[image, ..., rows, :], 0.0).mul_(weight[image, ..., rows, :])
            total += loss.sum(dtype=torch.float64)
        return total.mul_(temperature**2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        logits, teacher, weight, ignored = ctx.saved_tensors
        activate = torch.sigmoid if ctx.sigmoid else lambda scores: scores.softmax(0)
        gradient = empty_gradient(
            logits.shape, dtype=logits.dtype, device=logits.device, channels_last=is_channels_last(logits)
        )
        scaled = weight * (grad_total * ctx.temperature).to(weight.dtype)
        for image, rows in row_chunks(logits):
            student, taught = (
                activate(_scaled(z[image, :, rows], weight.dtype, ctx.temperature)) for z in (logits, teacher)
            )
            difference = student.sub_(taught).mul_(scaled[image, ..., rows, :])
            gradient[image, :, rows] = difference.masked_fill_(ignored[image, ..., rows, :], 0.0)
        return gradient, None, None, None, None, None


def _scaled(scores: Tensor, dtype: torch.dtype, temperature: float) -> Tensor:
    """Return the scores over T, in the type that is computed in."""
    scores = scores.to(dtype)
    return scores if temperature == 1 else scores / temperature
