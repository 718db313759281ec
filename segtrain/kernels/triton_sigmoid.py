"""The sigmoid class sums on a GPU: how their kernels are launched, and their sums put together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from segtrain.kernels import triton_binary
from segtrain.kernels.launch import BINARY_ELEMENTS, Launch, binary, num_programs
from segtrain.kernels.request import SUMS, Inputs, Request
from segtrain.kernels.triton_inputs import Read, options, power_of_two, total, wanted_bits
from segtrain.kernels.triton_ranks import Mined

COUNTS = ("pixels", "negatives", "kept", "kept_negatives")
ROWS = {  # of what a sum is made, by name: itself, and with the pixel terms that over the negatives
    "probability": ("probability",),
    "squared_probability": ("squared_probability",),
    "intersection": ("intersection",),
    "cross_entropy": ("cross_entropy", "cross_entropy_negatives"),
    "focal": ("focal", "focal_negatives"),
}
PIXEL_TERMS = 8 | 16  # bits of WANTED


def forward(inputs: Inputs, request: Request) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums, the counts `[4, N, C]` and the mask as `sigmoid_cpu.forward` does.

    Labels are not checked, as in `triton_softmax.forward`.
    """
    read = Read.prepare(inputs, request)
    rule = request.rule
    mined = None if rule is None else Mined.prepare(rule, read.target)
    wanted = wanted_bits(request, SUMS)
    names = (*COUNTS, *(row for name in request.wanted for row in ROWS[name]))
    if read.logits.numel():
        sums = _read(read, request, wanted, mined=mined)
    else:
        shape = (len(names), *read.logits.shape[:2])
        sums = torch.zeros(shape, dtype=torch.float64, device=read.logits.device)
    if mined is not None and read.logits.numel():
        num_classes = read.logits.shape[1]
        settled = mined.finish(read.target, ignore_index=request.ignore_index, sigmoid=True, num_classes=num_classes)
        again = _read(replace(read, keep=mined.mask), request, wanted & PIXEL_TERMS, settled=settled)
        changed = dict(zip(_changed(wanted), again[2:], strict=True))
        rows = [torch.where(settled != 0, row, changed.get(name, row)) for name, row in zip(names, sums, strict=True)]
        sums = torch.stack(rows)
    mask = inputs.target.new_empty(0, dtype=torch.bool) if mined is None else mined.mask.view(torch.bool)
    return sums[len(COUNTS) :], sums[: len(COUNTS)], mask


def backward(grads: Tensor, inputs: Inputs, request: Request) -> Tensor:
    """Return the gradient of the logits, in their type and layout, given that of the sums, float64 `[K, N, C]`."""
    read = Read.prepare(inputs, request)
    result = read.gradient()
    if result.numel():
        launch = _launch(read)
        triton_binary.backward[_grid(read, launch)](
            **_arguments(read, request, launch),
            grads=(grads * request.scale).float(),
            result=result,
            rc=1 if read.last else read.pixels,
            WANTED=wanted_bits(request, SUMS),
            **options(launch),
        )
    like = torch.empty_like(inputs.logits)
    return result if like.stride() == result.stride() else like.copy_(result)


def _read(
    read: Read, request: Request, wanted: int, *, mined: Mined | None = None, settled: Tensor | None = None
) -> Tensor:
    """Return the counts and the wanted rows, float64 `[4 + K, N, C]`."""
    launch = _launch(read)
    rows = len(COUNTS) + sum(len(ROWS[name]) for i, name in enumerate(SUMS) if wanted >> i & 1)
    grid = _grid(read, launch)
    partial = read.partial(rows, read.logits.shape[1], grid[0])
    triton_binary.forward[grid](
        **_arguments(read, request, launch),
        partial=partial,
        losses=None if mined is None else mined.losses,
        mask=None if mined is None else mined.mask,
        counts=None if mined is None else mined.counts,
        settled=settled,
        cut=0.0 if mined is None else mined.cut,
        WANTED=wanted,
        **options(launch),
    )
    return total(partial)


def _changed(wanted: int) -> tuple[str, ...]:
    """Return the names of the rows that mining changes, as a read of the wanted pixel terms alone gives them."""
    terms = (name for i, name in enumerate(SUMS) if wanted & PIXEL_TERMS & 1 << i)
    return ("kept", "kept_negatives", *(row for name in terms for row in ROWS[name]))


def _launch(read: Read) -> Launch:
    return binary(power_of_two(read.logits.shape[1]), channels_last=read.last)


def _width(read: Read, launch: Launch) -> int:
    return BINARY_ELEMENTS // launch.block if read.last else 1


def _grid(read: Read, launch: Launch) -> tuple[int, int, int]:
    images, num_classes = read.logits.shape[:2]
    blocks = -(-num_classes // _width(read, launch))
    programs = num_programs(launch, read.pixels, device=read.logits.device, shared_by=images * blocks)
    return programs, blocks, images


def _arguments(read: Read, request: Request, launch: Launch) -> dict[str, Any]:
    names = ("logits", "target", "shift", "margin", "weight", "keep", "gammas", "gamma", "pixels")
    return {
        **{name: getattr(read, name) for name in names},
        "num_classes": read.logits.shape[1],
        "sn": read.logits.stride(0),
        "sc": 1 if read.last else read.logits.stride(1),
        "sp": read.logits.shape[1] if read.last else 1,
        "ignore_index": request.ignore_index,
        "scale": request.scale,
        "WIDTH": _width(read, launch),
        "BLOCK": launch.block,
    }
