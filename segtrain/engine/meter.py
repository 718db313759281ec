"""What a run measures between two log lines: loss parts, speed and waiting."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from segtrain.distributed import mean_over_ranks, world_size


class Meter:
    """Means of the loss parts, images per second and the share of waiting, since the last restart."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget everything."""
        self._sums: dict[str, Tensor] = {}
        self._num_steps = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out of speed and waiting what came before, such as an evaluation; the means keep all steps."""
        self._num_images = 0
        self._waited = 0.0
        self._start = time.perf_counter()

    def add(self, values: dict[str, Tensor], *, num_images: int, waited: float) -> None:
        """Take in one step: its detached values, images of this rank, and the seconds waited for its data."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._num_steps += 1
        self._num_images += num_images
        self._waited += waited

    def values(self) -> dict[str, float]:
        """Return the means, images_per_second of all ranks and data_wait (0 to 1, mean over them); every rank must ask.

        Waits for the device, once.
        """
        sums = torch.stack([value.double() for value in self._sums.values()]).tolist() if self._sums else []
        means = {name: value / self._num_steps for name, value in zip(self._sums, sums, strict=True)}
        seconds = max(time.perf_counter() - self._start, 1e-9)
        speed = torch.tensor([self._num_images / seconds, self._waited / seconds], dtype=torch.float64)
        speed = mean_over_ranks(speed)
        return means | {"images_per_second": float(speed[0]) * world_size(), "data_wait": float(speed[1])}

    def to_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on between two log lines, as tensors and plain values; nothing of the clock."""
        sums = {name: value.detach().cpu() for name, value in self._sums.items()}
        return {"sums": sums, "num_steps": self._num_steps}

    def load(self, values: Mapping[str, Any], device: torch.device) -> None:
        """Go on from what `to_dict` returned."""
        self._sums = {name: value.to(device) for name, value in values["sums"].items()}
        self._num_steps = values["num_steps"]
