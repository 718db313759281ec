"""Shares groups of images out to splits so that each split gets its part of every class, in images and in pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

MAX_TRIED: Final = 20_000  # assignments: with so few, all are tried
FEW_GROUPS: Final = 2_000
STARTS: Final = 4  # with few groups, by other orders of equals
POOL: Final = 64  # groups of each two splits that are looked at for moves
PARTNERS: Final = 32  # of them for exchanges
MAX_STEPS: Final = 3_000
STEPS_OF_POOL: Final = 100
LEAST_GAIN: Final = 1e-10


@dataclass(frozen=True, eq=False)
class Stock:
    """What is shared out: shares of G groups in all images, and in the images and the pixels of each class that occurs.

    shares: float64 [G, 1 + 2 C], each column sums to 1. held: bool [G, C]. fractions: float64 [K], their sum is 1.
    """

    shares: Floats
    held: NDArray[np.bool_]
    fractions: Floats

    @classmethod
    def count(cls, counts: Counts, groups: Counts, fractions: Floats) -> Stock:
        """From pixels per image and class, int64 [N, C], and the group of each image, int64 [N], numbered from 0."""
        num_groups = int(groups.max(initial=-1)) + 1
        occurring = counts[:, counts.any(axis=0)]
        amounts = np.concatenate([np.ones((len(counts), 1)), occurring > 0, occurring], axis=1)
        summed = np.zeros((num_groups, amounts.shape[1]))
        np.add.at(summed, groups, amounts)
        num_classes = occurring.shape[1]
        return cls(summed / summed.sum(axis=0), summed[:, 1 : 1 + num_classes] > 0, fractions)

    @property
    def num_groups(self) -> int:
        """G."""
        return len(self.shares)

    @cached_property
    def weights(self) -> Floats:
        """Of the columns of `shares`: all images 1, and 1 in all for the classes' images as for their pixels."""
        num_classes = max(1, self.held.shape[1])
        return np.concatenate([[1.0], np.full(2 * self.held.shape[1], 1 / num_classes)])

    @cached_property
    def required(self) -> NDArray[np.bool_]:
        """Which split is to hold which class, bool [K, C].

        All of them, where as many groups hold it as there are splits; else the largest split, where a class can be
        learnt at least, if one is larger than the others.
        """
        num_splits = len(self.fractions)
        required = np.repeat((self.held.sum(axis=0) >= num_splits)[None], num_splits, axis=0)
        largest = self.fractions == self.fractions.max()
        if largest.sum() == 1:
            required[largest] = True
        return required

    def cost(self, sums: Floats) -> Floats:
        """How far splits are from their parts: sums [..., K, F] of shares to a cost [...]; 0 where all is as asked.

        Σ_f w_f Σ_s (share_sf − fraction_s)² / fraction_s, over all images, each class's images, each class's pixels.
        """
        fractions = self.fractions[:, None]
        squares: Floats = ((sums - fractions) ** 2 / fractions).sum(axis=-2)
        return squares @ self.weights


def stratify(stock: Stock, *, seed: int) -> Counts:
    """Give each group a split, int64 [G]: first every class to every split where that can be, then at the least cost.

    With few groups all assignments are tried. Otherwise groups of the rarest class are given out first (Sechidis,
    Tsoumakas and Vlahavas, On the Stratification of Multi-Label Data, 2011), each to the split where it costs least;
    then groups are moved and exchanged as long as that brings the cost down. The same for the same seed.
    """
    num_splits = len(stock.fractions)
    assert stock.num_groups >= num_splits
    if num_splits**stock.num_groups <= MAX_TRIED:
        return _try_all(stock)
    generator = np.random.default_rng(seed)
    starts = STARTS if stock.num_groups <= FEW_GROUPS else 1
    drafts = [_Draft.made(stock, generator) for _ in range(starts)]
    return min(drafts, key=lambda draft: (draft.num_missing, draft.cost)).assigned


def _try_all(stock: Stock) -> Counts:
    num_splits, num_groups = len(stock.fractions), stock.num_groups
    numbers = np.arange(num_splits**num_groups)[:, None]
    assigned = numbers // num_splits ** np.arange(num_groups) % num_splits
    chosen = (assigned[:, None, :] == np.arange(num_splits)[:, None]).astype(np.float64)
    sums = chosen @ stock.shares
    holders = chosen @ stock.held.astype(np.float64)
    empty = (sums[:, :, 0] == 0).sum(axis=1)
    missing = ((holders == 0) & stock.required).sum(axis=(1, 2))
    best = np.lexsort((stock.cost(sums), missing, empty))[0]
    return np.asarray(assigned[best], np.int64)


class _Draft:
    """One assignment of groups to splits, and what each split holds by it."""

    def __init__(self, stock: Stock) -> None:
        self.stock = stock
        self.assigned = np.full(stock.num_groups, -1, np.int64)
        self.sums = np.zeros((len(stock.fractions), stock.shares.shape[1]))
        self.holders = np.zeros((len(stock.fractions), stock.held.shape[1]), np.int64)  # groups with the class

    @classmethod
    def made(cls, stock: Stock, generator: np.random.Generator) -> _Draft:
        """Give everything out, put missing classes right, and improve."""
        draft = cls(stock)
        draft._give_out(generator)
        draft._supply_missing()
        draft._improve(generator)
        return draft

    @property
    def num_missing(self) -> int:
        """Classes that are not in a split that is to hold them, over all splits."""
        return int(((self.holders == 0) & self.stock.required).sum())

    @property
    def cost(self) -> float:
        """See Stock.cost."""
        return float(self.stock.cost(self.sums))

    def _put(self, group: int, split: int) -> None:
        before = self.assigned[group]
        if before >= 0:
            self.sums[before] -= self.stock.shares[group]
            self.holders[before] -= self.stock.held[group]
        self.assigned[group] = split
        self.sums[split] += self.stock.shares[group]
        self.holders[split] += self.stock.held[group]

    def _give_out(self, generator: np.random.Generator) -> None:
        stock = self.stock
        num_classes = stock.held.shape[1]
        order = generator.permutation(stock.num_groups)
        left = stock.held.sum(axis=0)
        while left.any():
            rarest = int(np.argmin(np.where(left > 0, left, np.iinfo(np.int64).max)))
            columns = [1 + rarest, 1 + num_classes + rarest]
            weights = stock.weights.copy()
            weights[columns] = 1.0  # the rarest class counts as much as all images
            members = order[stock.held[order, rarest] & (self.assigned[order] < 0)]
            amount = stock.shares[members][:, columns].sum(axis=1)
            for group in members[np.argsort(-amount, kind="stable")].tolist():
                self._put(group, self._cheapest(group, weights))
            left = left - stock.held[members].sum(axis=0)
        for group in order[self.assigned[order] < 0].tolist():  # without any class
            self._put(group, self._cheapest(group, stock.weights))

    def _cheapest(self, group: int, weights: Floats) -> int:
        """The split to which adding a group costs least."""
        shares = self.stock.shares[group]
        fractions = self.stock.fractions[:, None]
        return int(np.argmin(((shares + 2 * (self.sums - fractions)) / fractions) @ (weights * shares)))

    def _supply_missing(self) -> None:
        """Move groups so that no split misses a class that it is to hold, rarest classes first."""
        stock = self.stock
        for number in np.argsort(stock.held.sum(axis=0), kind="stable").tolist():
            for split in np.flatnonzero((self.holders[:, number] == 0) & stock.required[:, number]).tolist():
                holding = np.flatnonzero(stock.held[:, number] & self._free())
                if not holding.size:
                    continue
                gain = self._changes(holding)[:, split]
                self._put(int(holding[np.argmin(gain)]), split)

    def _free(self) -> NDArray[np.bool_]:
        """Groups that may leave their split: no class that is to be there goes with them, bool [G]."""
        last = (self.holders == 1) & self.stock.required
        kept: NDArray[np.bool_] = (self.stock.held & last[self.assigned]).any(axis=1)
        return ~kept

    def _slopes(self, groups: Counts) -> Floats:
        """Half of what the cost gains per share of these groups that a split gets: [len(groups), K]."""
        stock = self.stock
        fractions = stock.fractions[:, None]
        slopes: Floats = stock.shares[groups] @ (stock.weights * (self.sums - fractions) / fractions).T
        return slopes

    def _changes(self, groups: Counts) -> Floats:
        """By how much the cost changes when each of these groups moves to each split: [len(groups), K]."""
        stock, home = self.stock, self.assigned[groups]
        slopes, inverse = self._slopes(groups), 1 / stock.fractions
        size = stock.shares[groups] ** 2 @ stock.weights
        rows = np.arange(len(groups))
        changes = size[:, None] * (inverse[home][:, None] + inverse) + 2 * (slopes - slopes[rows, home][:, None])
        changes[rows, home] = 0.0
        return changes

    def _improve(self, generator: np.random.Generator) -> None:
        steps = 0
        while steps < MAX_STEPS:
            pool = self._pool(generator)
            before = steps
            while steps < before + STEPS_OF_POOL and self._step(pool):
                steps += 1
            if steps == before:
                return

    def _pool(self, generator: np.random.Generator) -> Counts:
        """Groups worth a closer look: all of few, else the best movers between each two splits, and some by chance."""
        if self.stock.num_groups <= FEW_GROUPS:
            return np.arange(self.stock.num_groups)
        everyone = np.arange(self.stock.num_groups)
        changes = self._changes(everyone)
        chosen = [generator.choice(everyone, 4 * POOL, replace=False)]
        for home in range(len(self.stock.fractions)):
            members = np.flatnonzero(self.assigned == home)
            for split in range(len(self.stock.fractions)):
                count = min(POOL, len(members))
                if split != home and count:
                    chosen.append(members[np.argpartition(changes[members, split], count - 1)[:count]])
        return np.unique(np.concatenate(chosen))

    def _step(self, pool: Counts) -> bool:
        """Make the best move or exchange within the pool; False where none brings the cost down."""
        pool = pool[self._free()[pool]]
        if not pool.size:
            return False
        changes = self._changes(pool)
        row, split = np.unravel_index(np.argmin(changes), changes.shape)
        best, moves = float(changes[row, split]), [(int(pool[row]), int(split))]
        for one, other in combinations(range(len(self.stock.fractions)), 2):
            change, exchange = self._best_exchange(pool, changes, one, other)
            if change < best:
                best, moves = change, exchange
        if best > -LEAST_GAIN:
            return False
        for group, target in moves:
            self._put(group, target)
        return True

    def _best_exchange(
        self, pool: Counts, changes: Floats, one: int, other: int
    ) -> tuple[float, list[tuple[int, int]]]:
        """The best of the exchanges between two splits of the groups that would best move alone."""
        stock = self.stock
        ours, theirs = (
            rows[np.argsort(changes[rows, target], kind="stable")[:PARTNERS]]
            for rows, target in (
                (np.flatnonzero(self.assigned[pool] == one), other),
                (np.flatnonzero(self.assigned[pool] == other), one),
            )
        )
        if not (ours.size and theirs.size):
            return 0.0, []
        weighted = stock.shares[pool[ours]] * stock.weights
        together = weighted @ stock.shares[pool[theirs]].T
        inverse = 1 / stock.fractions[one] + 1 / stock.fractions[other]
        change = changes[ours, other][:, None] + changes[theirs, one] - 2 * inverse * together
        row, column = np.unravel_index(np.argmin(change), change.shape)
        return float(change[row, column]), [(int(pool[ours[row]]), other), (int(pool[theirs[column]]), one)]
