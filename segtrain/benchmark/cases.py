"""What a loss is measured on: the shape, the types and the made-up pixels of one case."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

MemoryFormat = Literal["nchw", "channels_last"]
TargetKind = Literal["stored", "int64", "filled"]

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "float16", "bfloat16")}
TARGET_DTYPES = {name: getattr(torch, name) for name in ("uint8", "int16", "int32", "int64")}
MARGIN = 2.5  # by which the label's logit is raised above what the others' sum to: p_y < 0.7 in about 1 of 8 pixels


@dataclass(frozen=True)
class Case:
    """One shape and kind of inputs; equal cases give equal inputs."""

    batch: int = 4
    classes: int = 19
    size: int = 512
    dtype: str = "float32"
    memory_format: MemoryFormat = "nchw"
    target_dtype: str = "uint8"
    ignored: float = 0.1
    device: str = "cpu"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape `[N, C, H, W]` of the logits."""
        return self.batch, self.classes, self.size, self.size

    @property
    def ignore_index(self) -> int:
        """The label of ignored pixels: 255 in uint8, −1 in the signed types."""
        return 255 if self.target_dtype == "uint8" else -1

    @property
    def logits_bytes(self) -> int:
        """The size of the logits, and of their gradient."""
        dtype: torch.dtype = DTYPES[self.dtype]
        return math.prod(self.shape) * dtype.itemsize

    def tiny(self) -> Case:
        """Return the same kind of inputs at 1 image of 8×8 pixels: to try a loss."""
        return replace(self, batch=1, size=8)

    def title(self) -> str:
        """Return the case in words."""
        shape = "×".join(map(str, self.shape))
        return (
            f"logits {shape} {self.dtype} {self.memory_format}, {self.target_dtype} targets, "
            f"{100 * self.ignored:g} % ignored, {self.device}"
        )


@dataclass(frozen=True, eq=False)
class CaseInputs:
    """The tensors of a case: logits, a leaf `[N, C, H, W]`, and target `[N, H, W]` as a mask file stores it."""

    logits: Tensor
    target: Tensor


def make_inputs(case: Case) -> CaseInputs:
    """Make logits of a half-trained model and labels without structure, which no cache can guess.

    Labels are uniform over the classes, one pixel independent of the next, and the share `ignored` is ignored. Logits
    are standard normal, the label's raised so that about one pixel in eight has p_y < 0.7.
    """
    generator = torch.Generator(case.device).manual_seed(0)
    plane = (case.batch, case.size, case.size)
    labels = torch.randint(case.classes, plane, generator=generator, device=case.device)
    memory_format = torch.channels_last if case.memory_format == "channels_last" else torch.contiguous_format
    logits = torch.empty(case.shape, dtype=DTYPES[case.dtype], device=case.device, memory_format=memory_format)
    logits.normal_(generator=generator)
    raised = math.log(max(case.classes - 1, 1)) + MARGIN
    logits.scatter_add_(1, labels.unsqueeze(1), torch.full_like(labels, raised, dtype=logits.dtype).unsqueeze(1))
    ignored = torch.rand(plane, generator=generator, device=case.device) < case.ignored
    target = labels.masked_fill_(ignored, case.ignore_index).to(TARGET_DTYPES[case.target_dtype])
    return CaseInputs(logits=logits.requires_grad_(), target=target)


def as_target(inputs: CaseInputs, kind: TargetKind, *, ignore_index: int) -> Tensor:
    """Return the target in the form that a loss asks for, made before anything is measured.

    stored: as it is. int64: what F.cross_entropy and smp demand. filled: int64 `[N, 1, H, W]` with class 0 in place of
    the ignored pixels, for losses that cannot ignore.
    """
    if kind == "stored":
        return inputs.target
    if kind == "int64":
        return inputs.target.long()
    return inputs.target.long().masked_fill(inputs.target == ignore_index, 0).unsqueeze(1)


def class_weights(case: Case) -> Tensor:
    """Return the class weights of all weighted losses: float32 `[C]`, from 0.5 to 2."""
    return torch.linspace(0.5, 2.0, case.classes, device=case.device)
