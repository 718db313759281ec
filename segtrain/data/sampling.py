"""The order of training: which samples make which batch of an epoch, and the seed of each augmentation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Key = tuple[int, int]


class TrainBatchSampler:
    """Batches of (index, seed) for the rest of the current epoch, from the current batch on.

    Order and seeds are functions of (seed, epoch, position in the epoch's order): they depend neither on the
    number of workers nor on what was drawn before, and a sample drawn twice gets two augmentations. Batches
    are full, so that what is left over sits out this epoch; only a set smaller than one batch is one batch.
    """

    def __init__(self, num_samples: int, batch_size: int, *, seed: int, epoch: int = 0, batch: int = 0) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, found {num_samples}")
        self.num_samples = num_samples
        self.batch_size = min(batch_size, num_samples)
        self.seed = seed
        self.set_position(epoch, batch)

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in a whole epoch."""
        return self.num_samples // self.batch_size

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Start the next iteration at `batch` of `epoch`."""
        if epoch < 0 or not 0 <= batch <= self.batches_per_epoch:
            raise ValueError(f"no batch {batch} in epoch {epoch}: an epoch has {self.batches_per_epoch} batches")
        self.epoch, self.batch = epoch, batch

    def __len__(self) -> int:
        return self.batches_per_epoch - self.batch

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield the batches; the position does not move, as workers fetch ahead of training."""
        order, seeds = self._order(), self._seeds()
        for batch in range(self.batch, self.batches_per_epoch):
            part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            yield list(zip(order[part].tolist(), seeds[part].tolist(), strict=True))

    def _order(self) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, self.epoch, 0]).permutation(self.num_samples)

    def _seeds(self) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, self.epoch, 1]).integers(0, 2**63, size=self.num_samples)
