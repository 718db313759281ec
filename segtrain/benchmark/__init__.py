"""Measurements of time and memory, ours beside others', as ratios within one run."""

from __future__ import annotations

from segtrain.benchmark.losses import LossSettings, benchmark_losses

__all__ = ["LossSettings", "benchmark_losses"]
