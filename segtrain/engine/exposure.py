"""What training sees of each class: expected from the sampling, counted in the targets, beside what there is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtrain.config.data import DataConfig
from segtrain.data import ClassFrequencies

Counts = NDArray[np.int64]


def count_targets(targets: Iterable[Any], data: DataConfig) -> Counts:
    """Pixels of each class and ignored pixels of each target [H, W]: int64 [N, C + 1], as a scan gives them.

    Raises:
        DataError: a label that is neither a class nor ignore_index.
    """
    num_classes = len(data.classes)
    rows = []
    for target in targets:
        found = ClassFrequencies.from_targets([target], num_classes, ignore_index=data.ignore_index)
        rows.append(np.append(found.pixels, found.ignored))
    return np.array(rows, np.int64).reshape(-1, num_classes + 1)
