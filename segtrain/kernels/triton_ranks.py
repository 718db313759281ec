"""Hard-example mining on a GPU: the rule of `HardExamples` over losses that are there, without a wait or a sort."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segtrain.kernels import triton_mining as kernels
from segtrain.kernels.launch import MINING, TIES, TILES_OF_A_RUN, num_programs
from segtrain.kernels.mining import HardExamples
from segtrain.kernels.triton_inputs import options

LEVELS = ((20, 11), (10, 10), (0, 10))  # of a loss's 31 bits: how many lie below, and how many are looked at


@dataclass(frozen=True, eq=False)
class Mined:
    """What a read with mining leaves behind: losses, the mask by the threshold alone, and its counts.

    Attributes:
        losses: float32 in the shape of the target, −log p_y, 0 where ignored.
        mask: uint8, the same shape; final after `finish`.
        counts: int64 `[2]`, the numbers of valid pixels and of hard ones, which the read adds up.
    """

    rule: HardExamples
    losses: Tensor
    mask: Tensor
    counts: Tensor

    @classmethod
    def prepare(cls, rule: HardExamples, target: Tensor) -> Mined:
        return cls(
            rule=rule,
            losses=torch.empty(target.shape, dtype=torch.float32, device=target.device),
            mask=torch.empty(target.shape, dtype=torch.uint8, device=target.device),
            counts=torch.zeros(2, dtype=torch.int64, device=target.device),
        )

    @property
    def cut(self) -> float:
        """The loss above which a pixel is hard; infinite where the rule has no threshold."""
        return math.inf if self.rule.threshold is None else self.rule.cut

    def finish(self, target: Tensor, *, ignore_index: int, sigmoid: bool, num_classes: int) -> Tensor:
        """Make the mask final; return int32 `[1]`, 1 where the threshold's own mask was.

        Args:
            target: integer `[N, H, W]`, with sigmoid `[N, C, H, W]`; contiguous.
        """
        grouping = 0 if not self.rule.per_class else 2 if sigmoid else 1
        pixels: dict[str, Any] = {
            "size": target.numel(),
            "channel_pixels": target.shape[-1] * target.shape[-2],
            "num_channels": num_classes,
            "ignore_index": ignore_index,
            "labels": 2 if sigmoid else num_classes,
            "GROUPING": grouping,
        }
        num = num_programs(MINING, target.numel(), device=target.device)
        shape = {"BLOCK": MINING.block, **options(MINING)}
        groups = (1, num_classes, 2 * num_classes)[grouping]
        counts = self.counts.new_zeros((2, groups)) if grouping else self.counts
        if grouping:
            kernels.count_groups[(num,)](self.losses, target, counts, cut=self.cut, **pixels, **shape)
        state, settled = self._start(counts, groups)
        bins = torch.zeros((len(LEVELS), groups, 2**11), dtype=torch.int64, device=target.device)
        for level, (shift, width) in zip(bins, LEVELS, strict=True):
            kernels.histogram[(num,)](self.losses, target, state, level, SHIFT=shift, WIDTH=width, **pixels, **shape)
            kernels.pick[(groups,)](level, state, WIDTH=width, num_warps=4, enable_fp_fusion=True)
        self._keep(target, state, pixels)
        return settled

    def _start(self, counts: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        rule = self.rule
        state = torch.empty((groups, 4), dtype=torch.int64, device=self.losses.device)
        settled = torch.empty(1, dtype=torch.int32, device=self.losses.device)
        part = rule.min_kept if rule.top_k is None else rule.top_k
        kernels.start_ranking[(groups,)](
            counts,
            state,
            settled,
            groups,
            min_kept=0 if isinstance(part, float) else part,
            fraction_bits=struct.unpack("<q", struct.pack("<d", part))[0],
            cut_bits=struct.unpack("<i", struct.pack("<f", self.cut))[0] if self.cut >= 0 else -1,
            IS_FRACTION=isinstance(part, float),
            HAS_THRESHOLD=rule.threshold is not None,
            num_warps=1,
            enable_fp_fusion=True,
        )
        return state, settled

    def _keep(self, target: Tensor, state: Tensor, pixels: dict[str, Any]) -> None:
        runs = -(-target.numel() // (TIES.block * TILES_OF_A_RUN))
        ties = torch.zeros((len(state), runs), dtype=torch.int64, device=target.device)
        shape = {"TILES": TILES_OF_A_RUN, "BLOCK": TIES.block, **options(TIES)}
        num = num_programs(TIES, target.numel(), device=target.device)
        kernels.count_ties[(num,)](self.losses, target, state, ties, runs, **pixels, **shape)
        before = ties.cumsum(1) - ties
        kernels.keep_hardest[(runs,)](self.losses, target, state, before, self.mask, **pixels, **shape)
