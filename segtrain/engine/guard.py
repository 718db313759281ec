"""Steps whose loss or gradient was not finite: counted without waiting for the device, in the end the run's end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from segtrain.data.formats import Sample
from segtrain.distributed import gather_objects
from segtrain.errors import SegtrainError

IN_A_ROW = 10


class Guard:
    """Takes down for each step whether it was left out, and looks at that when `fetch` is called.

    All ranks see the same loss and gradient, and so agree on every step.

    Attributes:
        in_a_row: steps that were left out at last, as far as fetched.
    """

    def __init__(self) -> None:
        self._flags: list[Tensor] = []
        self._images: list[tuple[int, Sequence[Tensor]]] = []
        self.in_a_row = 0

    def add(self, left_out: Tensor, *, step: int, indices: Sequence[Tensor]) -> None:
        """Take in a step: whether it was left out, a bool scalar on the device, and its images by index."""
        self._flags.append(left_out)
        self._images.append((step, indices))

    def fetch(self, samples: Sequence[Sample], *, folder: Path) -> int:
        """Return how many steps were left out since the last call; waits for the device, once.

        Args:
            samples: of training. folder: where the checkpoints are, for the message.

        Raises:
            SegtrainError: so many steps in a row were left out that going on is of no use.
        """
        flags = torch.stack(self._flags).tolist() if self._flags else []
        images, self._flags, self._images = self._images, [], []
        for left_out, (step, indices) in zip(flags, images, strict=True):
            self.in_a_row = self.in_a_row + 1 if left_out else 0
            if self.in_a_row >= IN_A_ROW:
                own = [samples[index].name for batch in indices for index in batch.tolist()]
                raise SegtrainError(_message(step, [name for each in gather_objects(own) for name in each], folder))
        return sum(flags)


def _message(step: int, names: Sequence[str], folder: Path) -> str:
    return (
        f"the loss or its gradient was not finite in {IN_A_ROW} steps in a row, the last one step {step} with the "
        f"images {', '.join(names)}. Lower optimizer.lr, set optimizer.clip_norm, use train.precision=fp32, and look "
        f"at these images; the checkpoints of the steps before are in {folder}"
    )
