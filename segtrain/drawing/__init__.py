"""Pictures of class maps: numpy arrays in, uint8 RGB arrays out."""

from __future__ import annotations

from segtrain.drawing.maps import (
    ERROR_COLORS,
    ERROR_NAMES,
    colorize,
    error_codes,
    overlay,
    shrink_classes,
    to_display,
)
from segtrain.drawing.palette import palette
from segtrain.drawing.panel import panel
from segtrain.drawing.text import shorten

__all__ = [
    "ERROR_COLORS",
    "ERROR_NAMES",
    "colorize",
    "error_codes",
    "overlay",
    "palette",
    "panel",
    "shorten",
    "shrink_classes",
    "to_display",
]
