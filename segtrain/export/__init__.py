"""Trained models leave the framework: as ONNX, as torch programs, as folders, each compared with the run it is from."""

from __future__ import annotations

from segtrain.export.folder import save_pretrained
from segtrain.export.graph import PARTS
from segtrain.export.pretrained import TrainedModel, load_model
from segtrain.export.program import Shapes
from segtrain.export.shipping import Exported, GraphOptions, export_model, export_run

__all__ = [
    "PARTS",
    "Exported",
    "GraphOptions",
    "Shapes",
    "TrainedModel",
    "export_model",
    "export_run",
    "load_model",
    "save_pretrained",
]
