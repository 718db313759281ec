"""Finds images that show the same: pairs of hashes at most some bits apart, turned and flipped copies included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from segtrain.data.hashing import HASH_BYTES, Hash, orientations

Indices = NDArray[np.int64]

DEFAULT_THRESHOLD: Final = 24  # of 252 bits: copies lie below, other views of a street 80 and more apart
MAX_THRESHOLD: Final = 47
MAX_PAIRS: Final = 1_000_000
NUM_WORDS: Final = 16  # of 16 bits each
CHUNK: Final = 1_000_000  # pairs out of buckets compared at once
CHUNK_IN_CACHE: Final = 100_000  # pairs compared at once where it is all of them
COST_OF_BUCKETS: Final = 32  # comparing a pair picked out of buckets against comparing one of all pairs, in order


@dataclass(frozen=True, eq=False)
class Matches:
    """Pairs of images that look alike, sorted by the first, then the second: int64 [M] each.

    distance: bits in which the hashes differ in the best of the eight orientations. complete: whether these are all.
    """

    first: Indices
    second: Indices
    distance: Indices
    complete: bool = True

    def __len__(self) -> int:
        return len(self.first)


def matches_between(
    first: Hash, second: Hash, *, threshold: int = DEFAULT_THRESHOLD, max_pairs: int = MAX_PAIRS
) -> Matches:
    """Find all pairs of an image of `first` and one of `second`, uint8 [N, 32] each, at most `threshold` bits apart.

    Two hashes within 16 r + 15 bits agree in one of their 16 words but for r bits, so that only hashes with such a
    word are compared (multi-index hashing: Norouzi, Punjani and Fleet, Fast Exact Search in Hamming Space, 2014).
    The search stops at `max_pairs`.
    """
    assert 0 <= threshold <= MAX_THRESHOLD
    if len(first) > len(second):
        found = matches_between(second, first, threshold=threshold, max_pairs=max_pairs)
        return _sorted(found.second, found.first, found.distance, complete=found.complete)
    queries = orientations(first).reshape(-1, HASH_BYTES)
    search = _Search(queries, second, threshold=threshold)
    parts: list[Indices] = []
    num_found, complete = 0, True
    for part in search.run():
        part[0] %= len(first)
        parts.append(part)
        num_found += part.shape[1]
        if num_found > 2 * max_pairs:  # a pair may be found in several words and orientations
            parts = [_unique(parts, len(second))]
            num_found = parts[0].shape[1]
        if num_found >= max_pairs:
            complete = False
            break
    pairs = _unique(parts, len(second))
    return Matches(pairs[0], pairs[1], pairs[2], complete=complete)


def matches_within(hashes: Hash, *, threshold: int = DEFAULT_THRESHOLD, max_pairs: int = MAX_PAIRS) -> Matches:
    """Find all pairs of two images of one set, uint8 [N, 32]; `first` is below `second`. See matches_between."""
    # Each pair is found from both of its ends, and each image finds itself.
    found = matches_between(hashes, hashes, threshold=threshold, max_pairs=2 * max_pairs + len(hashes))
    once = found.first < found.second
    return Matches(found.first[once], found.second[once], found.distance[once], complete=found.complete)


def connected(num: int, first: Indices, second: Indices) -> Indices:
    """Number the groups that pairs connect, in the order of their first members: int64 [num]."""
    label = np.arange(num)
    while True:
        low = np.minimum(label[first], label[second])
        new = label.copy()
        np.minimum.at(new, label[first], low)  # the root of a group takes the lower of the two roots
        np.minimum.at(new, label[second], low)
        while not np.array_equal(new, new[new]):
            new = new[new]
        if np.array_equal(new, label):
            return np.unique(label, return_inverse=True)[1].astype(np.int64)
        label = new


class _Search:
    """The hashes of `base` in buckets by each of their words, and the queries that look there."""

    def __init__(self, queries: Hash, base: Hash, *, threshold: int) -> None:
        self._threshold = threshold
        self._queries, self._base = _words(queries, np.uint64), _words(base, np.uint64)
        self._query_keys, self._base_keys = _words(queries, np.uint16), _words(base, np.uint16)
        self._flips = _flips(threshold // NUM_WORDS)

    def run(self) -> Iterator[Indices]:
        """Yield int64 [3, M]: query, base and distance of pairs within the threshold, some more than once."""
        all_pairs = len(self._queries) * len(self._base)
        if not all_pairs:
            return
        buckets = [_Buckets(self._base_keys[:, word]) for word in range(NUM_WORDS)]
        to_compare = sum(
            int(one.sizes(self._query_keys[:, word] ^ flip).sum())
            for word, one in enumerate(buckets)
            for flip in self._flips
        )
        if COST_OF_BUCKETS * to_compare >= all_pairs:  # few hashes, or all much alike: buckets save nothing
            yield from self._compare_all()
            return
        for word, one in enumerate(buckets):
            for flip in self._flips:
                yield from self._compare_bucket(one, self._query_keys[:, word] ^ flip)

    def _compare_bucket(self, buckets: _Buckets, keys: NDArray[np.uint16]) -> Iterator[Indices]:
        sizes = buckets.sizes(keys)
        ends = np.cumsum(sizes)
        for start, stop in _parts(ends):
            some = sizes[start:stop]
            query = np.repeat(np.arange(start, stop), some)
            within = np.arange(len(query)) - np.repeat(np.cumsum(some) - some, some)
            base = buckets.order[np.repeat(buckets.starts[keys[start:stop]], some) + within]
            yield self._close(query, base)

    def _compare_all(self) -> Iterator[Indices]:
        num = len(self._base)
        rows = max(1, CHUNK_IN_CACHE // num)
        for start in range(0, len(self._queries), rows):
            stop = min(start + rows, len(self._queries))
            # Most pairs are far apart in the first quarter already.
            near = np.bitwise_count(self._queries[start:stop, None, 0] ^ self._base[None, :, 0]) <= self._threshold
            query, base = np.divmod(np.flatnonzero(near), num)  # on flat arrays five times faster than nonzero
            yield self._close(query + start, base)

    def _close(self, query: Indices, base: Indices) -> Indices:
        distance = np.bitwise_count(self._queries[query] ^ self._base[base]).sum(axis=1, dtype=np.int64)
        close = distance <= self._threshold
        return np.stack([query[close], base[close], distance[close]])


class _Buckets:
    """Numbers of hashes by the value of one word: those of value k are order[starts[k]:starts[k + 1]]."""

    def __init__(self, keys: NDArray[np.uint16]) -> None:
        self.order = np.argsort(keys, kind="stable").astype(np.int64)
        self.starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(keys, minlength=2**16))])
        self._counts = np.diff(self.starts)

    def sizes(self, keys: NDArray[np.uint16]) -> Indices:
        """How many hashes have each of these values."""
        return self._counts[keys]


def _words(hashes: Hash, kind: type[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    return np.ascontiguousarray(hashes).view(kind)


def _flips(most: int) -> list[np.uint16]:
    """All values of a word with at most `most` bits set: to be flipped in a key."""
    chosen = (bits for count in range(most + 1) for bits in combinations(range(16), count))
    return [np.uint16(sum(1 << bit for bit in bits)) for bits in chosen]


def _parts(ends: Indices) -> Iterator[tuple[int, int]]:
    """Cut queries, whose pairs end at `ends`, into runs of about CHUNK pairs."""
    start, done = 0, 0
    while start < len(ends):
        stop = max(start + 1, int(np.searchsorted(ends, done + CHUNK, side="right")))
        yield start, stop
        start, done = stop, int(ends[stop - 1])


def _unique(parts: list[Indices], num_second: int) -> Indices:
    """Each pair once, at its least distance, sorted: int64 [3, M]."""
    first, second, distance = np.concatenate([np.zeros((3, 0), np.int64), *parts], axis=1)
    pair = first * num_second + second
    order = np.lexsort((distance, pair))
    fresh = np.diff(pair[order], prepend=-1) > 0
    chosen = order[fresh]
    return np.stack([first[chosen], second[chosen], distance[chosen]])


def _sorted(first: Indices, second: Indices, distance: Indices, *, complete: bool) -> Matches:
    order = np.lexsort((second, first))
    return Matches(first[order], second[order], distance[order], complete=complete)
