"""Hashes the images of samples in threads, and remembers what it hashed beside the scan's cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from segtrain.config.data import DataConfig
from segtrain.data.formats import Sample
from segtrain.data.hashing import HASH_BYTES, Hash, hash_file
from segtrain.data.places import short_hash
from segtrain.data.problems import FileProblem, Problem
from segtrain.data.samples import Samples
from segtrain.data.scan import look_at_all
from segtrain.data.scan_cache import RowCache

HASH_VERSION: Final = 1  # raise it when images are hashed in another way
NUM_WORDS: Final = HASH_BYTES // 4


@dataclass(frozen=True, eq=False)
class ImageHashes:
    """Hashes of images, uint8 [N, 32]; `usable`, bool [N]: those that are neither plain nor unreadable."""

    hashes: Hash
    usable: NDArray[np.bool_]


def hash_images(
    data: DataConfig,
    split: str,
    samples: Sequence[Sample],
    *,
    workers: int | None = None,
    verify: bool = False,
    cache: bool = True,
    advance: Callable[[int], None],
) -> ImageHashes:
    """Hash the images of a split, each known from its size and time of change if it was hashed before.

    In a process group each rank hashes its share. `verify` hashes all anew, as in check_split.
    """
    samples = Samples.pack(samples)
    key = short_hash(f"{HASH_VERSION} {data.layout_key()} {data.splits[split]} {data.max_pixels}")
    store = RowCache(data, f"hashes-{key}.npz", num_counts=NUM_WORDS + 1)
    known = store.load() if cache and not verify else store.nothing()
    looks = look_at_all(_Hasher(data.max_pixels), samples, known=known, workers=workers, advance=advance)
    if cache and not looks.remembered.all():
        names = list(samples.select(looks.good).column("name"))
        store.save(names, looks.signatures[looks.good], looks.counts[looks.good])
    words = looks.counts[:, :NUM_WORDS].astype(np.uint32)
    return ImageHashes(words.view(np.uint8).reshape(-1, HASH_BYTES), looks.counts[:, NUM_WORDS] == 1)


class _Hasher:
    """Hashes one image into a row of the scan, int64 [9]: eight words of 32 bits, and 1 where there is a hash."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels

    def __call__(self, sample: Sample, /) -> tuple[NDArray[np.int64], list[Problem]]:
        row = np.zeros(NUM_WORDS + 1, np.int64)
        try:
            found = hash_file(sample.image, max_pixels=self._max_pixels)
        except FileProblem as error:
            return row, [error.problem]
        if found is not None:
            row[:NUM_WORDS], row[NUM_WORDS] = found.view(np.uint32), 1
        return row, []
