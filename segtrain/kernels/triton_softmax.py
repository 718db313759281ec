"""The softmax class sums on a GPU: which kernels are launched, and how their sums are put together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from segtrain.kernels import triton_columns, triton_columns_backward, triton_labels, triton_tiles
from segtrain.kernels.launch import (
    FEW_CLASSES,
    FEW_ENLARGED,
    LABEL_CLASSES,
    LABELS,
    MINING,
    TUNER,
    Launch,
    check_extent,
    columns,
    holds_all,
    num_programs,
    tiles,
)
from segtrain.kernels.request import PREDICTIONS, SUMS, Inputs, Request
from segtrain.kernels.triton_inputs import Read, options, power_of_two, total, wanted_bits
from segtrain.kernels.triton_ranks import Mined
from segtrain.kernels.upsample import Size

LANE_PIXELS = 16  # of a tile, whose sums `store_sums` stores as one: two of each of eight threads
OVER_CLASSES = ("probability", "squared_probability", "log_mass")  # the sums in which every class has a share
COUNTS = ("pixels", "kept")
LOG_MASS = 1 << SUMS.index("log_mass")
BY_LABEL = ("pixels", "kept", "intersection", "cross_entropy", "focal")  # rows of `triton_labels.forward`


def forward(inputs: Inputs, request: Request, *, size: Size | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the wanted sums `[K, N, C]`, the counts `[2 or 4, N, C]`, both float64, and the mined mask.

    The counts are pixels, kept, and with `request.predictions` predicted and correct. The mask is bool in the shape of
    the target where `request.mining` says so, else empty. Labels are not checked, as that would wait for the device:
    pixels whose label is out of range count nowhere, and make the counts NaN. With `size` the logits are coarse, see
    `Read.prepare`.
    """
    read = Read.prepare(inputs, request, size=size)
    rule, num_classes = request.rule, read.logits.shape[1]
    mined = None if rule is None else Mined.prepare(rule, read.target)
    wanted = wanted_bits(request, SUMS)
    if not read.target.numel():
        none = torch.zeros(read.logits.shape[:2], dtype=torch.float64, device=read.logits.device)
        sums = dict.fromkeys((*COUNTS, *SUMS, *PREDICTIONS), none)
    elif (size is None or num_classes <= FEW_ENLARGED) and holds_all(
        num_classes, 1 + len(request.wanted) + (mined is not None or read.keep is not None)
    ):
        sums = _few(read, request, wanted, mined)
    else:
        sums = _many(read, request, wanted, mined)
    if read.largest is not None and read.target.numel():
        settings = {"num_classes": num_classes, "ignore_index": request.ignore_index}
        sums |= zip(PREDICTIONS, count_largest(read.largest, read.target, **settings), strict=True)
    mask = inputs.target.new_empty(0, dtype=torch.bool) if mined is None else mined.mask.view(torch.bool)
    stacked = [sums[name] for name in request.wanted]
    counts = torch.stack([sums[name] for name in (*COUNTS, *(PREDICTIONS if request.predictions else ()))])
    return torch.stack(stacked) if stacked else counts[:0], counts, mask


def backward(grads: Tensor, inputs: Inputs, request: Request) -> Tensor:
    """Return the gradient of the logits, in their type and layout, given that of the sums, float64 `[K, N, C]`."""
    read = Read.prepare(inputs, request)
    result = read.gradient()
    slopes = (grads * request.scale).float()  # before anything is rounded to the type of the logits
    num_classes = read.logits.shape[1]
    few = num_classes <= FEW_CLASSES
    kernel = triton_columns_backward.backward if few else triton_tiles.backward

    def run(launch: Launch) -> None:
        kernel[(read.programs(launch), len(result))](
            **_arguments(read, request, wanted_bits(request, SUMS)),
            gammas=read.gammas,
            grads=slopes,
            result=result,
            gamma=read.gamma,
            BLOCK=launch.block,
            **options(launch),
        )

    if result.numel():
        launch = columns(num_classes, channels_last=read.last) if few else tiles(power_of_two(num_classes))
        run(TUNER.choose(("backward", *_kind(read), request.wanted), launch, run, device=result.device))
    like = torch.empty_like(inputs.logits)
    return result if like.stride() == result.stride() else like.copy_(result)


def _few(read: Read, request: Request, wanted: int, mined: Mined | None) -> dict[str, Tensor]:
    """Return the sums of few classes by name."""
    sums = _columns(read, request, wanted, mined=mined)
    if mined is None:
        return sums
    num_classes = read.logits.shape[1]
    settled = mined.finish(read.target, ignore_index=request.ignore_index, sigmoid=False, num_classes=num_classes)
    kept = replace(read, keep=mined.mask, largest=None)
    again = _by_label(kept, request, mined.losses, settled=settled)
    if wanted & LOG_MASS:
        again |= {"log_mass": _columns(kept, request, LOG_MASS, settled=settled)["log_mass"]}
    return {name: _chosen(settled, value, again.get(name)) for name, value in sums.items()}


def _many(read: Read, request: Request, wanted: int, mined: Mined | None) -> dict[str, Tensor]:
    """Return the sums of many classes by name."""
    if mined is None:
        losses = torch.empty(read.target.shape, dtype=torch.float32, device=read.logits.device)
        return _tiles(read, request, wanted, losses=losses) | _by_label(read, request, losses)
    sums = _tiles(read, request, wanted & ~LOG_MASS, losses=mined.losses, mined=mined)
    num_classes = read.logits.shape[1]
    mined.finish(read.target, ignore_index=request.ignore_index, sigmoid=False, num_classes=num_classes)
    kept = replace(read, keep=mined.mask, largest=None)
    if wanted & LOG_MASS:
        sums |= _tiles(kept, request, LOG_MASS)
    return sums | _by_label(kept, request, mined.losses)


def _chosen(settled: Tensor, first: Tensor, again: Tensor | None) -> Tensor:
    """Return what the read summed, or where the threshold was not enough the sums that were made again."""
    return first if again is None else torch.where(settled != 0, first, again)


def _columns(
    read: Read, request: Request, wanted: int, *, mined: Mined | None = None, settled: Tensor | None = None
) -> dict[str, Tensor]:
    """Read the logits: the counts and the wanted sums, of the pixels that a threshold keeps where there is `mined`."""
    images, num_classes = read.logits.shape[:2]
    names = (*COUNTS, *(name for index, name in enumerate(SUMS) if wanted >> index & 1))

    def run(launch: Launch) -> Tensor:
        programs = read.programs(launch)
        partial = read.partial(len(names), num_classes, programs * launch.block // LANE_PIXELS)
        triton_columns.forward[(programs, images)](
            **_arguments(read, request, wanted),
            **_outputs(read, mined),
            gammas=read.gammas,
            gamma=read.gamma,
            partial=partial,
            losses=None if mined is None else mined.losses,
            settled=settled,
            BLOCK=launch.block,
            **options(launch),
        )
        return partial

    launch = columns(num_classes, channels_last=read.last)
    if mined is None and settled is None:
        launch = TUNER.choose(("columns", *_kind(read), wanted), launch, run, device=read.logits.device)
    return dict(zip(names, total(run(launch)).unbind(), strict=True))


def _tiles(
    read: Read, request: Request, wanted: int, *, losses: Tensor | None = None, mined: Mined | None = None
) -> dict[str, Tensor]:
    """Read the logits: the wanted ones of the sums over all classes; write the losses where there are."""
    images, num_classes = read.logits.shape[:2]
    names = tuple(name for index, name in enumerate(SUMS) if wanted >> index & 1 and name in OVER_CLASSES)

    def run(launch: Launch) -> Tensor:
        programs = read.programs(launch)
        partial = read.partial(len(names), num_classes, programs)
        triton_tiles.forward[(programs, images)](
            **_arguments(read, request, wanted),
            **_outputs(read, mined),
            partial=partial,
            losses=losses,
            settled=None,
            BLOCK=launch.block,
            **options(launch),
        )
        return partial

    launch = tiles(power_of_two(num_classes))
    if mined is None:
        launch = TUNER.choose(("tiles", *_kind(read), wanted), launch, run, device=read.logits.device)
    return dict(zip(names, total(run(launch)).unbind(), strict=True))


def _by_label(read: Read, request: Request, losses: Tensor, *, settled: Tensor | None = None) -> dict[str, Tensor]:
    """Return the counts and the sums by label from the losses; of those that mining changes alone, with `settled`."""
    images, num_classes = read.logits.shape[:2]
    chunks = -(-num_classes // LABEL_CLASSES)
    programs = read.programs(LABELS)
    partial = read.partial(len(BY_LABEL), chunks * LABEL_CLASSES, programs * LABELS.block // LANE_PIXELS)
    triton_labels.forward[(chunks, programs, images)](
        losses,
        read.target,
        read.weight,
        read.keep,
        read.gammas,
        partial,
        settled,
        pixels=read.pixels,
        num_classes=num_classes,
        ignore_index=request.ignore_index,
        gamma=read.gamma,
        COUNT=LABEL_CLASSES,
        BLOCK=LABELS.block,
        **options(LABELS),
    )
    sums = dict(zip(BY_LABEL, total(partial)[..., :num_classes].unbind(), strict=True))
    return sums if settled is None else {name: sums[name] for name in ("kept", "cross_entropy", "focal")}


def count_largest(largest: Tensor, target: Tensor, *, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return how often each class is the largest at valid pixels, and is the label there too: float64 `[N, C]` each.

    Both are integer `[N, H, W]`, contiguous. A target as its own largest classes gives its pixels.
    """
    images, pixels = len(target), target.shape[1] * target.shape[2]
    check_extent(images, pixels)
    programs = num_programs(MINING, pixels, device=target.device, shared_by=images)
    bins = power_of_two(2 * num_classes)
    partial = torch.empty((images, programs, bins), dtype=torch.int32, device=target.device)
    if partial.numel():
        triton_labels.count_largest[(programs, images)](
            largest,
            target,
            partial,
            pixels=pixels,
            num_classes=num_classes,
            ignore_index=ignore_index,
            BINS=bins,
            BLOCK=MINING.block,
            **options(MINING),
        )
    wrong, correct = partial.sum(1).double()[:, : 2 * num_classes].view(images, num_classes, 2).unbind(-1)
    return wrong + correct, correct


def _kind(read: Read) -> tuple[Any, ...]:
    """Return what the fastest launch depends on."""
    given = (read.weight, read.keep, read.largest, read.enlargement)
    return read.logits.dtype, read.logits.shape[1], read.last, *(tensor is None for tensor in given)


def _arguments(read: Read, request: Request, wanted: int) -> dict[str, Any]:
    """Return what forward and backward of few and of many classes take alike."""
    num_classes = read.logits.shape[1]
    tensors = {name: getattr(read, name) for name in ("logits", "target", "shift", "margin", "weight", "keep")}
    shape = {"C": num_classes, "WIDTH": power_of_two(num_classes), "WANTED": wanted}
    return {**tensors, **read.where(), "ignore_index": request.ignore_index, "factor": read.factor, **shape}


def _outputs(read: Read, mined: Mined | None) -> dict[str, Any]:
    """Return what the forward takes besides: how it enlarges, and where it leaves the largest class and the mask."""
    mining: dict[str, Any] = {"mask": None, "counts": None, "cut": 0.0}
    if mined is not None:
        mining = {"mask": mined.mask, "counts": mined.counts, "cut": mined.cut}
    return {**read.corners(), "largest": read.largest, **mining}
