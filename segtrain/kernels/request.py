"""What a read of the logits is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from segtrain.kernels.mining import HardExamples

SUMS = ("probability", "squared_probability", "intersection", "cross_entropy", "focal", "log_mass")
PREDICTIONS = ("predicted", "correct")  # counts by the largest logit, which come together


@dataclass(frozen=True)
class Request:
    """The settings of `class_sums`, in types that an operator's schema knows.

    `wanted` are names of SUMS. `mining` is empty, or (threshold or -1, min_kept, 1 if that is a fraction, top_k or -1,
    per_class). `predictions` asks for PREDICTIONS, which backends for the CPU leave to the operator.
    """

    wanted: tuple[str, ...]
    sigmoid: bool
    ignore_index: int
    gamma: tuple[float, ...]
    scale: float
    mining: tuple[float, ...] = ()
    predictions: bool = False

    @property
    def rule(self) -> HardExamples | None:
        """The rule of hard-example mining."""
        if not self.mining:
            return None
        threshold, min_kept, is_fraction, top_k, per_class = self.mining
        return HardExamples(
            threshold=None if threshold < 0 else threshold,
            min_kept=min_kept if is_fraction else int(min_kept),
            top_k=None if top_k < 0 else top_k,
            per_class=bool(per_class),
        )


@dataclass(frozen=True, eq=False)
class Inputs:
    """The tensors of a read: logits `[N, C, H, W]`, target `[N, H, W]` (sigmoid `[N, C, H, W]`), vectors `[C]`,
    pixel_weight `[N, H, W]`, keep in the shape of target."""

    logits: Tensor
    target: Tensor
    shift: Tensor | None = None
    margin: Tensor | None = None
    pixel_weight: Tensor | None = None
    keep: Tensor | None = None


def encode_mining(rule: HardExamples | None) -> tuple[float, ...]:
    """Return `Request.mining` of a rule."""
    if rule is None:
        return ()
    threshold = -1.0 if rule.threshold is None else rule.threshold
    top_k = -1.0 if rule.top_k is None else rule.top_k
    is_fraction = isinstance(rule.min_kept, float)
    return (threshold, float(rule.min_kept), float(is_fraction), top_k, float(rule.per_class))
