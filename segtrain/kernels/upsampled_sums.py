"""The operator `segtrain::upsampled_class_sums`: class sums of logits that are enlarged while they are read.

On CUDA the kernels of softmax enlarge them in registers (`triton_coarse`). Elsewhere, and with sigmoid, forward and
backward enlarge each strip of rows anew, so that beside the coarse logits and their gradient no more than one strip
(and its gradient) exists; the strips go through `segtrain::class_sums`. Mining takes a read before, in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from segtrain.kernels import class_sums as ops
from segtrain.kernels.labels import to_buckets
from segtrain.kernels.request import SUMS, Inputs, Request
from segtrain.kernels.upsample import Size, Strip, add_adjoint, enlarge, strips


@torch.library.custom_op("segtrain::upsampled_class_sums", mutates_args=())
def upsampled_class_sums(
    coarse: Tensor,
    target: Tensor,
    shift: Tensor | None,
    margin: Tensor | None,
    pixel_weight: Tensor | None,
    keep: Tensor | None,
    size: Sequence[int],
    wanted: Sequence[int],
    sigmoid: bool,
    ignore_index: int,
    gamma: Sequence[float],
    scale: float,
    predictions: bool,
) -> tuple[Tensor, Tensor]:
    """Return sums and counts as `segtrain::class_sums` does, of coarse logits `[N, C, h, w]` enlarged to `size`.

    The target `[..., H, W]` is the top left part of that size. Differentiable once, in the coarse logits.

    Raises:
        DataError: a label out of range (on the CPU).
    """
    if coarse.is_cuda and not sigmoid:
        from segtrain.kernels import triton_coarse

        inputs = Inputs(coarse, target, shift, margin, pixel_weight, keep)
        request = _softmax_request(wanted, ignore_index, gamma, scale, predictions=predictions)
        with torch.cuda.device(coarse.device):
            return triton_coarse.forward(inputs, request, (size[0], size[1]))
    shapes = _shapes(coarse, wanted, sigmoid=sigmoid, predictions=predictions)
    sums, counts = (torch.zeros(shape, dtype=torch.float64, device=coarse.device) for shape in shapes)
    settings = (wanted, sigmoid, ignore_index, gamma, scale, (), predictions)
    with torch.autocast(coarse.device.type, enabled=False):
        for strip, logits, (labels, *rest) in _enlarged(coarse, (target, pixel_weight, keep), (size[0], size[1])):
            found = ops.class_sums(logits, labels, shift, margin, *rest, *settings)
            sums[:, strip.images] += found[0]
            counts[:, strip.images] += found[1]
    return sums, counts


@upsampled_class_sums.register_fake
def _(
    coarse: Tensor,
    target: Tensor,
    shift: Tensor | None,
    margin: Tensor | None,
    pixel_weight: Tensor | None,
    keep: Tensor | None,
    size: Sequence[int],
    wanted: Sequence[int],
    sigmoid: bool,
    ignore_index: int,
    gamma: Sequence[float],
    scale: float,
    predictions: bool,
) -> tuple[Tensor, Tensor]:
    shapes = _shapes(coarse, wanted, sigmoid=sigmoid, predictions=predictions)
    return coarse.new_empty(shapes[0], dtype=torch.float64), coarse.new_empty(shapes[1], dtype=torch.float64)


@torch.library.custom_op("segtrain::upsampled_class_sums_backward", mutates_args=())
def upsampled_class_sums_backward(
    grad: Tensor,
    coarse: Tensor,
    target: Tensor,
    shift: Tensor | None,
    margin: Tensor | None,
    pixel_weight: Tensor | None,
    keep: Tensor | None,
    size: Sequence[int],
    wanted: Sequence[int],
    sigmoid: bool,
    ignore_index: int,
    gamma: Sequence[float],
    scale: float,
) -> Tensor:
    """Return the gradient of the coarse logits, given that of the sums `[K, N, C]`."""
    covers = (size[0], size[1])
    if coarse.is_cuda and not sigmoid:
        from segtrain.kernels import triton_coarse

        inputs = Inputs(coarse, target, shift, margin, pixel_weight, keep)
        request = _softmax_request(wanted, ignore_index, gamma, scale)
        with torch.cuda.device(coarse.device):
            return triton_coarse.backward(grad, inputs, request, covers)
    result = torch.zeros(coarse.shape, dtype=torch.promote_types(coarse.dtype, torch.float32), device=coarse.device)
    settings = (wanted, sigmoid, ignore_index, gamma, scale)
    with torch.autocast(coarse.device.type, enabled=False):
        for strip, logits, (labels, *rest) in _enlarged(coarse, (target, pixel_weight, keep), covers):
            slopes = grad[:, strip.images].contiguous()
            slope = ops.class_sums_backward(slopes, logits, labels, shift, margin, *rest, *settings)
            add_adjoint(slope, strip, size=covers, out=result)
    return torch.empty_like(coarse).copy_(result)  # one rounding to the type of the logits, in their strides


@upsampled_class_sums_backward.register_fake
def _(grad: Tensor, coarse: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(coarse)


@torch.library.custom_op("segtrain::upsampled_mask", mutates_args=())
def upsampled_mask(
    coarse: Tensor,
    target: Tensor,
    shift: Tensor | None,
    margin: Tensor | None,
    size: Sequence[int],
    ignore_index: int,
    scale: float,
    mining: Sequence[float],
) -> Tensor:
    """Return which pixels `[N, H, W]` hard-example mining keeps: it ranks the whole batch, and so takes a read before.

    What is held meanwhile is one loss a pixel. Softmax alone; `mining` as in `Request`.
    """
    covers = (size[0], size[1])
    request = Request((), False, ignore_index, (2.0,), scale, tuple(mining))
    if coarse.is_cuda:
        from segtrain.kernels import triton_softmax

        with torch.cuda.device(coarse.device):
            return triton_softmax.forward(Inputs(coarse, target, shift, margin), request, size=covers)[2]
    assert request.rule is not None
    loss = torch.zeros(target.shape, dtype=torch.promote_types(coarse.dtype, torch.float32), device=coarse.device)
    with torch.autocast(coarse.device.type, enabled=False):
        for strip, scores, (part,) in _enlarged(coarse, (target,), covers):
            assert part is not None
            labels = part.long()
            if shift is not None:
                scores = scores + shift.to(scores).view(-1, 1, 1)
            if margin is not None:
                at_label = labels.masked_fill(labels == ignore_index, 0).unsqueeze(1)
                given_up = margin.to(scores)[at_label] * (labels != ignore_index).unsqueeze(1)
                scores = scores.scatter_add(1, at_label, -given_up)
            losses = cross_entropy(scores * scale, labels, ignore_index=ignore_index, reduction="none")
            loss[strip.images, strip.rows] = losses
    buckets = to_buckets(target, num_classes=coarse.shape[1], ignore_index=ignore_index)
    return request.rule(loss, buckets, num_buckets=coarse.shape[1])


@upsampled_mask.register_fake
def _(coarse: Tensor, target: Tensor, *others: Any) -> Tensor:
    return target.new_empty(target.shape, dtype=torch.bool)


def _enlarged(
    coarse: Tensor, tensors: tuple[Tensor, *tuple[Tensor | None, ...]], size: Size
) -> Iterator[tuple[Strip, Tensor, list[Tensor | None]]]:
    """Yield each strip, its logits, and its part of the tensors `[N, ..., H, W]`, the first of which is the target."""
    crop = (tensors[0].shape[-2], tensors[0].shape[-1])
    for strip in strips(coarse, crop):
        parts = [None if values is None else values[strip.images, ..., strip.rows, :] for values in tensors]
        yield strip, enlarge(coarse.detach(), strip, size=size, width=crop[1]), parts


def _softmax_request(
    wanted: Sequence[int], ignore_index: int, gamma: Sequence[float], scale: float, *, predictions: bool = False
) -> Request:
    names = tuple(SUMS[index] for index in wanted)
    return Request(names, False, ignore_index, tuple(gamma), scale, predictions=predictions)


def _shapes(
    coarse: Tensor, wanted: Sequence[int], *, sigmoid: bool, predictions: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of the sums and the counts."""
    names = ops.names_of_sums(tuple(SUMS[index] for index in wanted), sigmoid=sigmoid)
    counts = ops.names_of_counts(sigmoid=sigmoid, predictions=predictions)
    return (len(names), *coarse.shape[:2]), (len(counts), *coarse.shape[:2])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.size, ctx.wanted, ctx.sigmoid, ctx.ignore_index, ctx.gamma, ctx.scale, _ = inputs
    ctx.save_for_backward(*tensors)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    settings = (ctx.size, ctx.wanted, ctx.sigmoid, ctx.ignore_index, ctx.gamma, ctx.scale)
    return upsampled_class_sums_backward(grad, *ctx.saved_tensors, *settings), *[None] * 12


upsampled_class_sums.register_autograd(_backward, setup_context=_setup_context)
