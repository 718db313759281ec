"""Losses for semantic segmentation, made from a few sums over the pixels of each class."""

from __future__ import annotations

from segtrain.losses.accumulation import Normalizer
from segtrain.losses.build import build_loss, resolve_auto
from segtrain.losses.class_sums import ClassSums, class_sums
from segtrain.losses.combined import SegmentationLoss

__all__ = [
    "ClassSums",
    "Normalizer",
    "SegmentationLoss",
    "build_loss",
    "class_sums",
    "resolve_auto",
]
