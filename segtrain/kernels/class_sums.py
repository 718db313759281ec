"""The operator `segtrain::class_sums`: one opaque node for autograd and torch.compile, with a backward of its own.

Kernels that Numba compiles work on CPU tensors (`softmax_cpu`, `sigmoid_cpu`), Triton's on CUDA tensors
(`triton_softmax`, `triton_sigmoid`). Both are imported when the first such tensor comes: Triton may be missing, and
Numba takes half a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segtrain.kernels import confusion_cpu
from segtrain.kernels.request import PREDICTIONS, SUMS, Inputs, Request

WITH_NEGATIVES = ("cross_entropy", "focal")


@torch.library.custom_op("segtrain::class_sums", mutates_args=())
def class_sums(
    logits: Tensor,
    target: Tensor,
    shift: Tensor | None,
    margin: Tensor | None,
    pixel_weight: Tensor | None,
    keep: Tensor | None,
    wanted: Sequence[int],
    sigmoid: bool,
    ignore_index: int,
    gamma: Sequence[float],
    scale: float,
    mining: Sequence[float],
    predictions: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the wanted sums `[K, N, C]` (`names_of_sums`), the counts `[2 or 4, N, C]` (`names_of_counts`), and the
    mined mask.

    See `segtrain.losses.class_sums` for the arguments, `Request` for how the settings are spelled. Differentiable
    once, in the logits.

    Raises:
        DataError: a label out of range, on the CPU; on CUDA it makes the counts NaN.
    """
    request = _request(wanted, sigmoid, ignore_index, gamma, scale, mining, predictions=predictions)
    inputs = Inputs(logits, target, shift, margin, pixel_weight, keep)
    if logits.is_cuda:
        with torch.cuda.device(logits.device):
            sums, counts, mask = _triton_backend(request).forward(inputs, request)
        return sums, counts, mask
    with torch.autocast(logits.device.type, enabled=False):  # the products inside are sums: they keep their precision
        sums, counts, mask = _cpu_backend(request).forward(inputs, request)
    if predictions:
        counts = torch.cat((counts, _predictions(inputs, ignore_index)))
    return sums, counts, mask


@class_sums.register_fake
def _(
    logits: Tensor,
    target: Tensor,
    shift: Tensor | None,
    margin: Tensor | None,
    pixel_weight: Tensor | None,
    keep: Tensor | None,
    wanted: Sequence[int],
    sigmoid: bool,
    ignore_index: int,
    gamma: Sequence[float],
    scale: float,
    mining: Sequence[float],
    predictions: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (logits.shape[0], logits.shape[1])
    names = names_of_sums(tuple(SUMS[index] for index in wanted), sigmoid=sigmoid)
    sums = logits.new_empty((len(names), *shape), dtype=torch.float64)
    num_counts = len(names_of_counts(sigmoid=sigmoid, predictions=predictions))
    counts = logits.new_empty((num_counts, *shape), dtype=torch.float64)
    mask = logits.new_empty(target.shape if len(mining) else (0,), dtype=torch.bool)
    return sums, counts, mask


@torch.library.custom_op("segtrain::class_sums_backward", mutates_args=())
def class_sums_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    shift: Tensor | None,
    margin: Tensor | None,
    pixel_weight: Tensor | None,
    keep: Tensor | None,
    wanted: Sequence[int],
    sigmoid: bool,
    ignore_index: int,
    gamma: Sequence[float],
    scale: float,
) -> Tensor:
    """Return the gradient of the logits, given that of the sums `[K, N, C]`; `keep` is the mined mask, if any."""
    request = _request(wanted, sigmoid, ignore_index, gamma, scale, ())
    inputs = Inputs(logits, target, shift, margin, pixel_weight, keep)
    if logits.is_cuda:  # which rows are 0 cannot be asked without a wait: all that are wanted are worked on
        with torch.cuda.device(logits.device):
            result: Tensor = _triton_backend(request).backward(grad, inputs, request)
        return result
    names = names_of_sums(request.wanted, sigmoid=sigmoid)
    grads = {name: row for name, row in zip(names, grad, strict=True) if bool((row != 0).any())}
    with torch.autocast(logits.device.type, enabled=False):
        found: Tensor = _cpu_backend(request).backward(grads, inputs, request)
        return found


@class_sums_backward.register_fake
def _(grad: Tensor, logits: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(logits)


def names_of_sums(wanted: tuple[str, ...], *, sigmoid: bool) -> tuple[str, ...]:
    """Name the rows of the result: with sigmoid, the pixel terms are followed by their sums over the negatives."""
    if not sigmoid:
        return wanted
    pairs = ((name, f"{name}_negatives") if name in WITH_NEGATIVES else (name,) for name in wanted)
    return tuple(name for pair in pairs for name in pair)


def names_of_counts(*, sigmoid: bool, predictions: bool) -> tuple[str, ...]:
    """Name the rows of the counts."""
    names = ("pixels", "negatives", "kept", "kept_negatives") if sigmoid else ("pixels", "kept")
    return (*names, *PREDICTIONS) if predictions else names


def _request(
    wanted: Sequence[int],
    sigmoid: bool,
    ignore_index: int,
    gamma: Sequence[float],
    scale: float,
    mining: Sequence[float],
    *,
    predictions: bool = False,
) -> Request:
    names = tuple(SUMS[index] for index in wanted)
    return Request(names, sigmoid, ignore_index, tuple(gamma), scale, tuple(mining), predictions)


def _predictions(inputs: Inputs, ignore_index: int) -> Tensor:
    """Return the PREDICTIONS float64 `[2, N, C]` on the CPU: by a read of their own, which the confusion matrix has."""
    found = confusion_cpu.largest(inputs.logits, shift=None)
    settings = {"num_classes": inputs.logits.shape[1], "ignore_index": ignore_index}
    matrix = confusion_cpu.count_pairs(found, inputs.target, **settings)
    return torch.stack((matrix.sum(1), matrix.diagonal(dim1=1, dim2=2))).double()


def _cpu_backend(request: Request) -> Any:
    if request.sigmoid:
        from segtrain.kernels import sigmoid_cpu

        return sigmoid_cpu
    from segtrain.kernels import softmax_cpu

    return softmax_cpu


def _triton_backend(request: Request) -> Any:
    if request.sigmoid:
        from segtrain.kernels import triton_sigmoid

        return triton_sigmoid
    from segtrain.kernels import triton_softmax

    return triton_softmax


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, shift, margin, pixel_weight, keep, *settings, mining, _ = inputs
    ctx.save_for_backward(logits, target, shift, margin, pixel_weight, output[2] if len(mining) else keep)
    ctx.settings = settings
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return class_sums_backward(grad, *ctx.saved_tensors, *ctx.settings), *[None] * 12


class_sums.register_autograd(_backward, setup_context=_setup_context)
