"""Measurements of time and memory, ours beside others', as ratios within one run."""

from __future__ import annotations

from segtrain.benchmark.confusion import ConfusionSettings, benchmark_confusion
from segtrain.benchmark.losses import LossSettings, benchmark_losses

__all__ = ["ConfusionSettings", "LossSettings", "benchmark_confusion", "benchmark_losses"]
