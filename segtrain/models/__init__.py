"""Segmentation models: built by name from segmentation-models-pytorch, padded, frozen and started as configured."""

from __future__ import annotations

from segtrain.models.factory import build_model
from segtrain.models.network import Normalize, SegmentationModel

__all__ = ["Normalize", "SegmentationModel", "build_model"]
