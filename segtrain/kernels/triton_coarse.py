"""The class sums of coarse logits on a GPU, enlarged while they are read: softmax, any number of classes."""

from __future__ import annotations

import torch
from torch import Tensor

from segtrain.kernels import triton_enlarged_backward, triton_softmax
from segtrain.kernels.launch import coarse_tiles, num_programs
from segtrain.kernels.request import SUMS, Inputs, Request
from segtrain.kernels.triton_inputs import Read, options, power_of_two, wanted_bits
from segtrain.kernels.upsample import Size


def forward(inputs: Inputs, request: Request, size: Size) -> tuple[Tensor, Tensor]:
    """Return sums and counts as `triton_softmax.forward` does, of coarse logits `[N, C, h, w]` enlarged to `size`.

    The target `[N, H, W]` is the top left part of that size.
    """
    sums, counts, _ = triton_softmax.forward(inputs, request, size=size)
    return sums, counts


def backward(grads: Tensor, inputs: Inputs, request: Request, size: Size) -> Tensor:
    """Return the gradient of the coarse logits, in their type and layout, given that of the sums `[K, N, C]`."""
    read = Read.prepare(inputs, request, size=size)
    enlargement = read.enlargement
    assert enlargement is not None
    images, num_classes, height, width = read.logits.shape
    result = torch.empty(read.logits.shape, dtype=read.logits.dtype, device=read.logits.device)
    launch = coarse_tiles(power_of_two(num_classes))
    programs = num_programs(launch, height * width, device=result.device, shared_by=images)
    if result.numel():
        triton_enlarged_backward.backward[(programs, images)](
            read.logits,
            read.target,
            read.shift,
            read.margin,
            read.weight,
            read.keep,
            read.gammas,
            (grads * request.scale).float(),
            result,
            spans=enlargement.spans,
            pixels=read.pixels,
            **read.corners(),
            small_height=height,
            small_width=width,
            rows=enlargement.reach[0],
            columns=enlargement.reach[1],
            sn=read.logits.stride(0),
            sc=read.logits.stride(1),
            ignore_index=request.ignore_index,
            factor=read.factor,
            gamma=read.gamma,
            C=num_classes,
            WIDTH=power_of_two(num_classes),
            WANTED=wanted_bits(request, SUMS),
            BLOCK=launch.block,
            **options(launch),
        )
    like = torch.empty_like(inputs.logits)
    return result if like.stride() == result.stride() else like.copy_(result)
