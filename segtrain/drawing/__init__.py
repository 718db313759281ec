"""Pictures of class maps: numpy arrays in, uint8 RGB arrays out."""

from __future__ import annotations

from segtrain.drawing.label_panel import label_panel, panel_of
from segtrain.drawing.maps import (
    ERROR_COLORS,
    ERROR_NAMES,
    colorize,
    error_codes,
    overlay,
    overlay_labels,
    shrink_classes,
    to_display,
)
from segtrain.drawing.palette import class_palette, palette
from segtrain.drawing.panel import panel
from segtrain.drawing.text import shorten

__all__ = [
    "ERROR_COLORS",
    "ERROR_NAMES",
    "class_palette",
    "colorize",
    "error_codes",
    "label_panel",
    "overlay",
    "overlay_labels",
    "palette",
    "panel",
    "panel_of",
    "shorten",
    "shrink_classes",
    "to_display",
]
