"""Online hard-example mining as the configuration spells it."""

from __future__ import annotations

from segtrain.config.loss import OhemConfig
from segtrain.kernels.mining import DEFAULT_MIN_KEPT, HardExamples

__all__ = ["HardExamples", "hard_examples"]


def hard_examples(config: OhemConfig) -> HardExamples:
    """Return the rule of `loss.ohem`; `min_kept` is 0.05 where it is not given."""
    return HardExamples(
        threshold=config.threshold,
        min_kept=DEFAULT_MIN_KEPT if config.min_kept is None else config.min_kept,
        top_k=config.top_k,
        per_class=config.per_class,
    )
