"""Validation: everything that is wrong with a data set, grouped by kind, from one look at every file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segtrain.config.data import DataConfig
from segtrain.data.duplicates import DEFAULT_THRESHOLD
from segtrain.data.formats import all_splits, data_root, find_samples
from segtrain.data.frequencies import ClassFrequencies, ScanResult, scan_split
from segtrain.data.image_hashes import ImageHashes
from segtrain.data.labels import label_rules
from segtrain.data.masks import LARGEST_RAW_VALUE
from segtrain.data.similar import check_threshold, hash_split, similar_across
from segtrain.data.validation import findings as kinds
from segtrain.data.validation.findings import TITLES, Finding, Severity
from segtrain.data.validation.suspicions import find_suspicions
from segtrain.errors import DataError

__all__ = ["TITLES", "Finding", "Severity", "Validation", "validate"]


@dataclass(frozen=True, eq=False)
class Validation:
    """What was looked at, and what was found; `threshold` is None where images were not compared."""

    scans: dict[str, ScanResult]
    findings: list[Finding]
    threshold: int | None
    num_plain: int

    def failing(self, *, strict: bool = False, accept: Sequence[str] = ()) -> list[Finding]:
        """The findings that are to make the exit code 1: problems, with `strict` warnings too, but none of `accept`."""
        return [one for one in self.findings if one.kind not in accept and (strict or one.severity is Severity.PROBLEM)]

    def to_dict(self, data: DataConfig) -> dict[str, Any]:
        """Plain values for JSON; all files of all findings."""
        splits = {
            split: {
                "good_samples": len(scan.samples),
                "bad_files": len(scan.problems),
                "pixels": dict(zip(data.class_names, scan.frequencies.pixels.tolist(), strict=True)),
                "images": dict(zip(data.class_names, scan.frequencies.images.tolist(), strict=True)),
                "ignored": scan.frequencies.ignored,
            }
            | _labelled(scan.frequencies, data)
            for split, scan in self.scans.items()
        }
        return {
            "root": data.root,
            "splits": splits,
            "threshold": self.threshold,
            "images_without_detail": self.num_plain,
            "findings": [finding.to_dict() for finding in self.findings],
        }


def _labelled(frequencies: ClassFrequencies, data: DataConfig) -> dict[str, Any]:
    """The pixels at which each class is labelled, where that differs by class."""
    if frequencies.valid is None:
        return {}
    return {"labelled": dict(zip(data.class_names, frequencies.valid.tolist(), strict=True))}


def validate(
    data: DataConfig,
    splits: Sequence[str] | None = None,
    *,
    threshold: int | None = DEFAULT_THRESHOLD,
    workers: int | None = None,
    verify: bool = False,
    cache: bool = True,
    show_progress: bool = True,
) -> Validation:
    """Look at every file of some splits (default: all there are) and find all that is wrong with them.

    Files that an earlier scan found good are not read again, unless `verify` is true. threshold: bits up to which
    images of different splits are near-duplicates; None: they are not compared.

    Raises:
        DataError: no split at all.
    """
    if threshold is not None:
        check_threshold(threshold)
    chosen = list(splits) if splits is not None else all_splits(data)
    scans: dict[str, ScanResult] = {}
    unusable: dict[str, str] = {}
    for split in chosen:
        try:
            find_samples(data, split)
        except DataError as error:
            unusable[split] = str(error)
            continue
        scans[split] = scan_split(data, split, workers=workers, verify=verify, cache=cache, show_progress=show_progress)
    hashes: dict[str, ImageHashes] = {}
    if threshold is not None and len(scans) > 1:
        for split, scan in scans.items():
            hashes[split] = hash_split(
                data, split, scan.samples, workers=workers, verify=verify, cache=cache, show_progress=show_progress
            )
    found = _findings(data, scans, unusable, hashes, threshold=threshold)
    num_plain = sum(int((~one.usable).sum()) for one in hashes.values())
    return Validation(scans, found, threshold if hashes else None, num_plain)


def _findings(
    data: DataConfig,
    scans: dict[str, ScanResult],
    unusable: dict[str, str],
    hashes: dict[str, ImageHashes],
    *,
    threshold: int | None,
) -> list[Finding]:
    root = data_root(data)
    problems = {split: scan.problems for split, scan in scans.items()}
    in_bad_masks = list(kinds.raw_values(problem for found in problems.values() for problem in found))
    unknown = _unknown(data, in_bad_masks)
    pixels = sum((scan.frequencies.pixels for scan in scans.values()), np.zeros(len(data.class_names), np.int64))
    ignored = sum(scan.frequencies.ignored for scan in scans.values())
    doubts = find_suspicions(data, pixels.tolist(), ignored, in_bad_masks=in_bad_masks, unknown=unknown)
    pairs = similar_across(hashes, threshold=threshold) if threshold is not None else []
    found = [
        *kinds.unusable_splits(unusable),
        *kinds.file_findings(problems, root, unknown=set(unknown)),
        *kinds.absent_classes(scans, data.class_names),
        *kinds.no_negatives(scans, data.class_names, root),
        *kinds.near_duplicates(pairs, scans, root),
        *kinds.suspicions(doubts),
        *kinds.empty_masks(scans, root),
        *kinds.unused_masks(scans, root),
    ]
    assert all(finding.kind in TITLES for finding in found)
    return found


def _unknown(data: DataConfig, values: Sequence[int]) -> list[int]:
    """Those of some raw mask values that have no meaning."""
    rules = label_rules(data)
    without = []
    for value in values:
        alone = np.zeros(LARGEST_RAW_VALUE + 1, np.int64)
        alone[value] = 1
        if rules.explain_unknown(alone):
            without.append(value)
    return without
