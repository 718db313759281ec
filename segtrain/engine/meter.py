"""What a run measures between two log lines: loss parts, speed and waiting."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Meter:
    """Means of the loss parts, images per second and the share of waiting, since the last restart."""

    def __init__(self) -> None:
        self.num_non_finite = 0
        self.restart()

    def restart(self) -> None:
        """Forget everything but the count of steps in a row that were not finite."""
        self._sums: dict[str, Tensor] = {}
        self._num_steps = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out of speed and waiting what came before, such as an evaluation; the means keep all steps."""
        self._num_images = 0
        self._waited = 0.0
        self._start = time.perf_counter()

    def add(self, values: dict[str, Tensor], *, num_images: int, waited: float) -> None:
        """Take in one step: its detached values, images, and the seconds waited for its data."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._num_steps += 1
        self._num_images += num_images
        self._waited += waited
        finite = bool(torch.isfinite(values["grad_norm"]) & torch.isfinite(values["loss"]))
        self.num_non_finite = 0 if finite else self.num_non_finite + 1

    def values(self) -> dict[str, float]:
        """Return the means, images_per_second and data_wait (0 to 1)."""
        seconds = max(time.perf_counter() - self._start, 1e-9)
        means = {name: float(value) / self._num_steps for name, value in self._sums.items()}
        return means | {"images_per_second": self._num_images / seconds, "data_wait": self._waited / seconds}

    def to_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on between two log lines, as tensors and plain values; nothing of the clock."""
        sums = {name: value.detach().cpu() for name, value in self._sums.items()}
        return {"sums": sums, "num_steps": self._num_steps, "num_non_finite": self.num_non_finite}

    def load(self, values: Mapping[str, Any], device: torch.device) -> None:
        """Go on from what `to_dict` returned."""
        self._sums = {name: value.to(device) for name, value in values["sums"].items()}
        self._num_steps = values["num_steps"]
        self.num_non_finite = values["num_non_finite"]
