"""Semantic segmentation training for data in which the classes that matter are rare."""

from __future__ import annotations

__version__ = "0.1.0"
