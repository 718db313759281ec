"""The order of training: which samples make which batch of an epoch, and the seed of each augmentation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from segtrain.data.schemes import Rounds, Scheme
from segtrain.errors import ConfigError

Key = tuple[int, int]


class TrainBatchSampler:
    """Batches of (index, seed) for the rest of the current epoch, from the current batch on.

    Order and seeds are functions of (seed, epoch, position in the epoch's order): they depend neither on the
    number of workers nor on what was drawn before, and a sample drawn twice gets two augmentations. Batches
    are full, so that what is left over sits out this epoch; only a set smaller than one batch is one batch.

    Several ranks share one order: of each `world_size × batch_size` samples in a row, rank r takes every
    world_size-th one from the r-th on. So no sample of the order is seen by two ranks, and the samples of a step
    are the same for any number of ranks among which the same number of samples is divided.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int,
        epoch: int = 0,
        batch: int = 0,
        scheme: Scheme | None = None,
        epoch_samples: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Order `num_samples` samples.

        Args:
            num_samples: size of the training set.
            batch_size: samples in a batch of one rank.
            seed: of order and augmentations.
            epoch, batch: where the first iteration starts.
            scheme: which samples an epoch holds; default: each once.
            epoch_samples: samples in an epoch, over all ranks; default: num_samples.
            rank, world_size: which share of each epoch this process sees.

        Raises:
            ConfigError: an epoch has fewer samples than there are ranks.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, found {num_samples}")
        if not 0 <= rank < world_size:
            raise ValueError(f"no rank {rank} among {world_size}")
        self.epoch_samples = num_samples if epoch_samples is None else epoch_samples
        if self.epoch_samples < world_size:
            raise ConfigError(
                f"an epoch of {self.epoch_samples} training images cannot be shared by {world_size} ranks: use fewer "
                "of them, or raise data.sampling.epoch_samples"
            )
        self.num_samples = num_samples
        self.batch_size = min(batch_size, self.epoch_samples // world_size)
        self.seed = seed
        self.scheme = Rounds(np.ones(num_samples)) if scheme is None else scheme
        self.rank, self.world_size = rank, world_size
        self.set_position(epoch, batch)

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches of each rank in a whole epoch."""
        return self.epoch_samples // (self.batch_size * self.world_size)

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Start the next iteration at `batch` of `epoch`; raises ValueError where there is none."""
        if epoch < 0 or not 0 <= batch <= self.batches_per_epoch:
            raise ValueError(f"no batch {batch} in epoch {epoch}: an epoch has {self.batches_per_epoch} batches")
        self.epoch, self.batch = epoch, batch

    def __len__(self) -> int:
        return self.batches_per_epoch - self.batch

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield the batches; the position does not move, as workers fetch ahead of training."""
        order, seeds = self.order(self.epoch), self._seeds()
        together = self.batch_size * self.world_size
        for batch in range(self.batch, self.batches_per_epoch):
            part = slice(batch * together + self.rank, (batch + 1) * together, self.world_size)
            yield list(zip(order[part].tolist(), seeds[part].tolist(), strict=True))

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Indices of an epoch in the order in which all ranks together read them, what is left over cut off."""
        used = self.batches_per_epoch * self.batch_size * self.world_size
        return self.scheme.draw(used, np.random.default_rng([self.seed, epoch, 0]))

    def _seeds(self) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, self.epoch, 1]).integers(0, 2**63, size=self.epoch_samples)
