"""The data room: files on disk become batches, and class frequencies."""

from __future__ import annotations

from segtrain.data.frequencies import ClassFrequencies, ScanResult, check_split, scan_frequencies

__all__ = ["ClassFrequencies", "ScanResult", "check_split", "scan_frequencies"]
