"""The fixed validation samples that TensorBoard shows: which ones, and their panels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from segtrain.config import Config
from segtrain.distributed import gather_objects
from segtrain.drawing import class_palette, panel_of
from segtrain.tracking import Tracker


def choose_samples(counts: NDArray[np.int64], rare: Sequence[int], *, num_samples: int) -> tuple[int, ...]:
    """Return indices of samples in which the rare classes can be seen.

    In turn for each rare class: the sample, not chosen yet, with most of its pixels. What is left is filled with
    samples at even distances.

    Args:
        counts: pixels of each class in each sample, `[num_images, C]` (further columns are ignored).
        rare: numbers of the classes, rarest first.
        num_samples: how many to choose, at most all.
    """
    num_samples = min(num_samples, len(counts))
    chosen: list[int] = []
    for turn in range(num_samples if rare else 0):
        column = counts[:, rare[turn % len(rare)]].copy()
        column[chosen] = 0
        if column.size and column.max() > 0:
            chosen.append(int(column.argmax()))
    spread = np.linspace(0, len(counts) - 1, len(counts), dtype=np.int64)[:: max(1, len(counts) // max(num_samples, 1))]
    for index in [*spread.tolist(), *range(len(counts))]:
        if len(chosen) < num_samples and index not in chosen:
            chosen.append(index)
    return tuple(sorted(chosen))


class ValidationImages:
    """Draws the chosen samples while an evaluation passes over them, and logs each once."""

    def __init__(self, config: Config, names: Sequence[str], *, indices: Sequence[int], rare: Sequence[int]) -> None:
        self._config = config
        self._names = {index: names[index] for index in indices}
        self._rare = rare
        self._colors = class_palette(config.data)
        self._panels: dict[int, NDArray[np.uint8]] = {}

    def take(self, index: int, image: Tensor, target: Tensor, prediction: Tensor) -> None:
        """Draw sample `index` if it is a chosen one; the signature of `evaluate`'s on_image."""
        if index not in self._names:
            return
        self._panels[index] = panel_of(
            image.permute(1, 2, 0).numpy(),
            target.numpy(),
            prediction.numpy(),
            colors=self._colors,
            class_names=self._config.data.class_names,
            classes=self._rare,
            caption=self._names[index],
            ignore_index=self._config.data.ignore_index,
        )

    def log(self, tracker: Tracker, step: int) -> None:
        """Hand the panels of this evaluation, of all ranks, to the tracker; every rank must call it."""
        panels = {index: picture for each in gather_objects(self._panels) for index, picture in each.items()}
        for index, picture in sorted(panels.items()):
            tracker.image(step, f"val/{self._names[index]}", picture)
        self._panels.clear()
