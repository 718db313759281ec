"""Which images of a data set show the same: hashes of the samples, and the pairs found among them or between splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from segtrain.config.data import DataConfig
from segtrain.console import progress
from segtrain.data.duplicates import DEFAULT_THRESHOLD, MAX_THRESHOLD, Matches, matches_between, matches_within
from segtrain.data.formats import Sample
from segtrain.data.image_hashes import ImageHashes, hash_images
from segtrain.data.splits import Material
from segtrain.errors import ConfigError


def check_threshold(threshold: int) -> int:
    """The threshold, in bits, if the search takes it; raises ConfigError."""
    if not 0 <= threshold <= MAX_THRESHOLD:
        raise ConfigError(
            f"--threshold: expected 0 to {MAX_THRESHOLD} bits of 252 (default {DEFAULT_THRESHOLD}), found {threshold}"
        )
    return threshold


def hash_split(
    data: DataConfig,
    split: str,
    samples: Sequence[Sample],
    *,
    workers: int | None = None,
    verify: bool = False,
    cache: bool = True,
    show_progress: bool = True,
) -> ImageHashes:
    """Hash the images of a split with progress; see hash_images."""
    shown: AbstractContextManager[Callable[[int], None]] = (
        progress(f"compare {split}: images", len(samples)) if show_progress else nullcontext(lambda count: None)
    )
    with shown as advance:
        return hash_images(data, split, samples, workers=workers, verify=verify, cache=cache, advance=advance)


def similar_within(
    data: DataConfig, material: Material, *, threshold: int = DEFAULT_THRESHOLD, workers: int | None = None
) -> Matches:
    """Find the pairs among all samples of the material, as indices of its samples.

    Raises:
        ConfigError: a threshold out of range, or one at which so much looks the same that the search was given up.
    """
    check_threshold(threshold)
    rows, hashes = [], []
    for number, split in enumerate(material.sources):
        mine = np.flatnonzero(material.source == number)
        found = hash_split(data, split, material.samples.select(mine), workers=workers)
        rows.append(mine[found.usable])
        hashes.append(found.hashes[found.usable])
    places = np.concatenate(rows)
    matches = matches_within(np.concatenate(hashes), threshold=threshold)
    if not matches.complete:
        raise ConfigError(
            f"more than {len(matches):,} pairs look the same at --threshold {threshold}: choose a lower one, or group "
            "by folder, name or column"
        )
    return Matches(places[matches.first], places[matches.second], matches.distance)


@dataclass(frozen=True, eq=False)
class Across:
    """Pairs of images of two splits that look the same, as indices of their samples."""

    first_split: str
    second_split: str
    matches: Matches


def similar_across(hashes: dict[str, ImageHashes], *, threshold: int = DEFAULT_THRESHOLD) -> list[Across]:
    """Find the pairs between each two splits; where there are too many, the search ends early (matches.complete)."""
    check_threshold(threshold)
    names, found = list(hashes), []
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            ours, theirs = (np.flatnonzero(hashes[name].usable) for name in (first, second))
            pairs = matches_between(hashes[first].hashes[ours], hashes[second].hashes[theirs], threshold=threshold)
            indexed = Matches(ours[pairs.first], theirs[pairs.second], pairs.distance, complete=pairs.complete)
            found.append(Across(first, second, indexed))
    return found
