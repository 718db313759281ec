"""How ratios are named and numbers written in tables; imports nothing heavy."""

from __future__ import annotations

import numpy as np

UNDEFINED = "–"
RATIO_NAMES = {"iou": "IoU", "dice": "Dice"}  # the others go by their own name


def percent(share: float) -> str:
    """A share in percent with two decimals, or as many as two digits that are not 0 need."""
    value = 100 * float(share)
    if value == 0 or value >= 0.1:
        return f"{value:.2f}"
    return np.format_float_positional(value, precision=2, fractional=False)
