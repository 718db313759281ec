"""The inputs of a read as Triton kernels take them: strides they know, small tables, and space for partial sums."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segtrain.kernels.confusion_cpu import class_dtype
from segtrain.kernels.launch import Launch, check_extent, num_programs
from segtrain.kernels.request import Inputs, Request
from segtrain.kernels.triton_pixel import GAMMAS, write_gammas
from segtrain.kernels.upsample import Size, taps

LOG2_E = 1.4426950408889634


@dataclass(frozen=True, eq=False)
class Read:
    """The inputs of one read; tensors of pixels are contiguous.

    Attributes:
        logits: `[N, C, H, W]`, as given where pixels stand side by side for each class, or (`last`) classes for each
            pixel; else a contiguous copy. Coarse ones `[N, C, h, w]` (with `enlargement`) as given.
        last: whether the classes of a pixel stand side by side (channels_last).
        factor: scale · log2(e), what scores are multiplied with before `exp2`.
    """

    logits: Tensor
    last: bool
    target: Tensor
    shift: Tensor | None  # float32 [C]
    margin: Tensor | None  # float32 [C]
    weight: Tensor | None  # [N, H, W]
    keep: Tensor | None  # uint8, as target
    gammas: Tensor | None  # float32 [C], where there are several
    gamma: float
    factor: float
    largest: Tensor | None  # where the read leaves the class of the largest logit: [N, H, W]
    enlargement: Enlargement | None

    @classmethod
    def prepare(cls, inputs: Inputs, request: Request, *, size: Size | None = None) -> Read:
        """Take the inputs; with `size` the logits are coarse, and the target is the top left part of that size."""
        logits, crop = inputs.logits, (inputs.target.shape[-2], inputs.target.shape[-1])
        check_extent(len(logits), crop[0] * crop[1])
        if size is None and not (_pixels_side_by_side(logits) or classes_side_by_side(logits)):
            logits = logits.contiguous()
        coarse = (logits.shape[2], logits.shape[3])
        return cls(
            logits=logits,
            last=size is None and not _pixels_side_by_side(logits),
            enlargement=None if size is None else enlargement(coarse, size, crop, device=logits.device),
            target=inputs.target.contiguous(),
            shift=None if inputs.shift is None else inputs.shift.float().contiguous(),
            margin=None if inputs.margin is None else inputs.margin.float().contiguous(),
            weight=None if inputs.pixel_weight is None else inputs.pixel_weight.contiguous(),
            keep=None if inputs.keep is None else inputs.keep.contiguous().view(torch.uint8),
            gammas=None if len(request.gamma) == 1 else _on_device(request.gamma, logits.device),
            gamma=request.gamma[0],
            factor=request.scale * LOG2_E,
            largest=_class_map(logits.shape[1], inputs.target) if request.predictions else None,
        )

    def gradient(self) -> Tensor:
        """Return space for the gradient: dense, whatever slice of something larger the logits are."""
        layout = torch.channels_last if self.last else torch.contiguous_format
        return torch.empty(self.logits.shape, dtype=self.logits.dtype, device=self.logits.device, memory_format=layout)

    @property
    def pixels(self) -> int:
        """H · W."""
        return self.target.shape[-2] * self.target.shape[-1]

    def programs(self, launch: Launch) -> int:
        """Return how many programs share an image."""
        return num_programs(launch, self.pixels, device=self.logits.device, shared_by=len(self.logits))

    def where(self) -> dict[str, Any]:
        """Return the arguments of a kernel that say where the logits stand."""
        return {"pixels": self.pixels, "sn": self.logits.stride(0), "sc": self.logits.stride(1), "LAST": self.last}

    def corners(self) -> dict[str, Any]:
        """Return the arguments of a kernel that say how the logits are enlarged."""
        if self.enlargement is None:
            return {"places": None, "weights": None, "height": 0, "width": 0, "sh": 0, "sw": 0}
        tables = {"places": self.enlargement.places, "weights": self.enlargement.weights}
        height, width = self.target.shape[-2:]
        return {**tables, "height": height, "width": width, "sh": self.logits.stride(2), "sw": self.logits.stride(3)}

    def partial(self, rows: int, classes: int, lanes: int) -> Tensor:
        """Return space for partial sums."""
        return self.logits.new_empty((rows, len(self.logits), classes, lanes), dtype=torch.float32)


def options(launch: Launch) -> dict[str, Any]:
    """Return the options of a launch; contraction to fused multiply-adds is what the speed rests on."""
    return {"num_warps": launch.warps, "enable_fp_fusion": True}


def total(partial: Tensor) -> Tensor:
    """Add up partial sums over the lanes of all programs, in an order that depends on the shape alone: float64."""
    return partial.sum(-1, dtype=torch.float64)


def power_of_two(number: int) -> int:
    """Return the least power of two that is not below a number."""
    return 1 << max(number - 1, 0).bit_length()


def wanted_bits(request: Request, names: tuple[str, ...]) -> int:
    """Return WANTED of the kernels: bit i for the sum that is names[i]."""
    return sum(1 << index for index, name in enumerate(names) if name in request.wanted)


def classes_side_by_side(values: Tensor) -> bool:
    """Whether `[N, C, H, W]` is dense in channels_last."""
    _, num_classes, height, width = values.shape
    strides = ((num_classes, 1), (height, width * num_classes), (width, num_classes))
    return all(size == 1 or found == wanted for (size, wanted), found in zip(strides, values.stride()[1:], strict=True))


def _pixels_side_by_side(values: Tensor) -> bool:
    height, width = values.shape[2:]
    return (width == 1 or values.stride(3) == 1) and (height == 1 or values.stride(2) == width)


@dataclass(frozen=True, eq=False)
class Enlargement:
    """Tables of how coarse logits `[N, C, h, w]` make full-size ones, of which the top left `[H, W]` are read."""

    places: Tensor  # int32 [2 H + 2 W]: of each row the first and the second coarse one, then of each column
    weights: Tensor  # float32 [H + W]: of the second one
    spans: Tensor  # int32 [2 h + 2 w]: of each coarse row, begin and end of those that it has a share in; then columns
    reach: Size  # the longest span of a row, and of a column


@lru_cache(maxsize=64)
def enlargement(coarse: Size, size: Size, crop: Size, *, device: torch.device) -> Enlargement:
    """Return the tables for these sizes; the first call for them waits for the device."""
    axes = [taps(small, large).part(slice(0, end)) for small, large, end in zip(coarse, size, crop, strict=True)]
    spans = [
        (np.searchsorted(axis.second, np.arange(small)), np.searchsorted(axis.first, np.arange(small), side="right"))
        for axis, small in zip(axes, coarse, strict=True)
    ]
    places = np.concatenate([part for axis in axes for part in (axis.first, axis.second)])
    reach = [int((end - begin).max(initial=0)) for begin, end in spans]
    return Enlargement(
        places=torch.from_numpy(places.astype(np.int32)).to(device),
        weights=torch.from_numpy(np.concatenate([axis.weight for axis in axes]).astype(np.float32)).to(device),
        spans=torch.from_numpy(np.concatenate([part for span in spans for part in span]).astype(np.int32)).to(device),
        reach=(reach[0], reach[1]),
    )


def _class_map(num_classes: int, target: Tensor) -> Tensor:
    return torch.empty(target.shape, dtype=class_dtype(num_classes), device=target.device)


def _on_device(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """Return numbers as float32 on a device, as arguments of kernels: a copy would wait, or not be capturable."""
    table = torch.empty(power_of_two(max(len(numbers), GAMMAS)), dtype=torch.float32, device=device)
    for first in range(0, len(numbers), GAMMAS):
        part = [*numbers[first : first + GAMMAS], *[0.0] * GAMMAS][:GAMMAS]
        write_gammas[(1,)](table, first, *part, num_warps=1, enable_fp_fusion=True)
    return table[: len(numbers)]
