"""What training sees of each class: expected from the sampling, counted in the targets, beside what there is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtrain.config.data import DataConfig
from segtrain.data import ClassFrequencies
from segtrain.data.labels import count_labels

Counts = NDArray[np.int64]


def count_targets(targets: Iterable[Any], data: DataConfig) -> Counts:
    """Pixels of each class and ignored pixels of each target [H, W]: int64 [N, C + 1], as a scan counts them.

    Of multi-label targets [C, H, W] int64 [N, 3 C]: see `segtrain.data.frequencies.frequencies_of`.

    Raises:
        DataError: a label that is neither a class nor ignore_index.
    """
    num_classes = len(data.classes)
    if data.multi_label:
        each = [
            count_labels(np.asarray(target), num_classes=num_classes, ignore_index=data.ignore_index)
            for target in targets
        ]
        return np.array(each, np.int64).reshape(-1, 3 * num_classes)
    rows = []
    for target in targets:
        found = ClassFrequencies.from_targets([target], num_classes, ignore_index=data.ignore_index)
        rows.append(np.append(found.pixels, found.ignored))
    return np.array(rows, np.int64).reshape(-1, num_classes + 1)
