"""The inputs of a read as Triton kernels take them: strides they know, small tables, and space for partial sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segtrain.kernels.confusion_cpu import class_dtype
from segtrain.kernels.launch import Launch, check_extent, num_programs
from segtrain.kernels.request import Inputs, Request
from segtrain.kernels.triton_pixel import GAMMAS, write_gammas

LOG2_E = 1.4426950408889634


@dataclass(frozen=True, eq=False)
class Read:
    """The inputs of one read; tensors of pixels are contiguous.

    Attributes:
        logits: `[N, C, H, W]`, as given where pixels stand side by side for each class, or (`last`) classes for each
            pixel; else a contiguous copy.
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

    @classmethod
    def prepare(cls, inputs: Inputs, request: Request) -> Read:
        logits = inputs.logits
        check_extent(len(logits), logits.shape[2] * logits.shape[3])
        if not (_pixels_side_by_side(logits) or classes_side_by_side(logits)):
            logits = logits.contiguous()
        return cls(
            logits=logits,
            last=not _pixels_side_by_side(logits),
            target=inputs.target.contiguous(),
            shift=None if inputs.shift is None else inputs.shift.float().contiguous(),
            margin=None if inputs.margin is None else inputs.margin.float().contiguous(),
            weight=None if inputs.pixel_weight is None else inputs.pixel_weight.contiguous(),
            keep=None if inputs.keep is None else inputs.keep.contiguous().view(torch.uint8),
            gammas=None if len(request.gamma) == 1 else _on_device(request.gamma, logits.device),
            gamma=request.gamma[0],
            factor=request.scale * LOG2_E,
            largest=_class_map(logits) if request.predictions else None,
        )

    def gradient(self) -> Tensor:
        """Return space for the gradient: dense, whatever slice of something larger the logits are."""
        layout = torch.channels_last if self.last else torch.contiguous_format
        return torch.empty(self.logits.shape, dtype=self.logits.dtype, device=self.logits.device, memory_format=layout)

    @property
    def pixels(self) -> int:
        """H · W."""
        return self.logits.shape[2] * self.logits.shape[3]

    def programs(self, launch: Launch) -> int:
        """Return how many programs share an image."""
        return num_programs(launch, self.pixels, device=self.logits.device, shared_by=len(self.logits))

    def where(self) -> dict[str, Any]:
        """Return the arguments of a kernel that say where the logits stand."""
        return {"pixels": self.pixels, "sn": self.logits.stride(0), "sc": self.logits.stride(1), "LAST": self.last}

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


def _class_map(logits: Tensor) -> Tensor:
    images, num_classes, height, width = logits.shape
    return torch.empty((images, height, width), dtype=class_dtype(num_classes), device=logits.device)


def _on_device(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """Return numbers as float32 on a device, as arguments of kernels: a copy would wait, or not be capturable."""
    table = torch.empty(power_of_two(max(len(numbers), GAMMAS)), dtype=torch.float32, device=device)
    for first in range(0, len(numbers), GAMMAS):
        part = [*numbers[first : first + GAMMAS], *[0.0] * GAMMAS][:GAMMAS]
        write_gammas[(1,)](table, first, *part, num_warps=1, enable_fp_fusion=True)
    return table[: len(numbers)]
