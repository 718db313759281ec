"""Semantic segmentation training for data in which the classes that matter are rare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segtrain.export.pretrained import load_model as load_model

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `load_model` when it is asked for: `import segtrain` alone loads no torch."""
    if name != "load_model":
        raise AttributeError(f"module 'segtrain' has no attribute {name!r}")
    from segtrain.export.pretrained import load_model

    return load_model
