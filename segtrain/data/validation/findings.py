"""What validation finds: kinds with their titles and weight, and the findings that files and counts give."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np

from segtrain.data.frequencies import ScanResult
from segtrain.data.problems import Kind, Problem
from segtrain.data.similar import Across

MAX_VALUES: Final = 20


class Severity(StrEnum):
    """Problems stop training or falsify its measures, and make the exit code 1; warnings ask for a look."""

    PROBLEM = "problem"
    WARNING = "warning"


# kind: its title, and what to do about it where the single reasons do not say
TITLES: dict[str, tuple[str, str]] = {
    "unusable_split": ("splits that cannot be used", ""),
    Kind.MISSING.value: ("files missing", ""),
    Kind.AMBIGUOUS.value: ("pairs that are not clear", ""),
    Kind.UNREADABLE.value: ("unreadable files", ""),
    Kind.TRUNCATED.value: ("truncated files", "the end is missing: copy or download them again"),
    Kind.MISNAMED.value: ("names that belie the file", ""),
    Kind.ROTATED.value: ("EXIF-rotated files", ""),
    Kind.TOO_LARGE.value: ("images over the pixel limit", "raise data.max_pixels if they are what they should be"),
    Kind.PIXEL_TYPE.value: ("pixels of the wrong type", ""),
    Kind.SIZE_MISMATCH.value: ("mask and image of different size", ""),
    Kind.UNKNOWN_VALUES.value: ("masks with unknown values", ""),
    "absent_classes": ("classes absent from a split", "segtrain split makes splits that hold every class"),
    "no_negatives": (
        "classes without negatives in a split",
        "every labelled pixel says yes, which teaches and measures nothing: see what the values of the masks mean",
    ),
    "near_duplicates": (
        "near-duplicate images across splits",
        "they flatter val and test: segtrain split --group-duplicates keeps such images together",
    ),
    "label_shift": ("suspicious mask values", "nothing is changed by itself: say what the values mean"),
    "empty_masks": ("masks of nothing but ignore", "they teach and measure nothing"),
    "unused_masks": ("masks without an image", "nothing reads them"),
}
WARNINGS: Final = ("label_shift", "empty_masks", "unused_masks")


@dataclass(frozen=True)
class Entry:
    """A file of a finding (relative to data.root where it lies below), or a pair of files `distance` bits apart."""

    split: str
    file: str
    detail: str = ""
    other: str | None = None
    distance: int | None = None


@dataclass(frozen=True)
class Finding:
    """All of one kind. notes: what holds for many files at once, such as the unknown values. count: how many."""

    kind: str
    count: int
    notes: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    @property
    def title(self) -> str:
        """A few words for people."""
        return TITLES[self.kind][0]

    @property
    def advice(self) -> str:
        """What to do about it, or nothing where the details say it."""
        return TITLES[self.kind][1]

    @property
    def severity(self) -> Severity:
        """Whether it makes the exit code 1."""
        return Severity.WARNING if self.kind in WARNINGS else Severity.PROBLEM

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        files: list[dict[str, Any]] = [
            {"split": one.split, "file": one.file, "detail": one.detail}
            | ({} if one.other is None else {"other": one.other, "distance": one.distance})
            for one in self.entries
        ]
        return {
            "kind": self.kind,
            "severity": self.severity.value,
            "title": self.title,
            "count": self.count,
            "notes": self.notes,
            "files": files,
        }


def relative(path: Path, root: Path) -> str:
    """A path as people write it: below root without root."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def file_findings(problems: Mapping[str, Sequence[Problem]], root: Path, *, unknown: Collection[int]) -> list[Finding]:
    """One finding for each kind of bad files, from the problems of each split and the values without a meaning."""
    by_kind: dict[Kind, list[tuple[str, Problem]]] = defaultdict(list)
    for split, found in problems.items():
        for problem in found:
            by_kind[problem.kind].append((split, problem))
    findings = []
    for kind in Kind:
        found_here = by_kind[kind]
        grouped = kind is Kind.UNKNOWN_VALUES and all(problem.values is not None for _, problem in found_here)
        entries = [
            Entry(split, relative(problem.path, root), "" if grouped or kind is Kind.TRUNCATED else problem.reason)
            for split, problem in found_here
        ]
        notes = _value_notes([problem for _, problem in found_here], unknown) if grouped and found_here else []
        if entries:
            findings.append(Finding(kind.value, len(entries), notes, entries))
    return findings


def raw_values(problems: Iterable[Problem]) -> dict[int, tuple[int, int]]:
    """Each raw value of masks that hold unknown ones: its pixels, and the masks that hold it."""
    pixels: dict[int, int] = defaultdict(int)
    masks: dict[int, int] = defaultdict(int)
    for problem in problems:
        if problem.values is None:
            continue
        for value, count in problem.values.T.tolist():
            pixels[value] += count
            masks[value] += 1
    return {value: (pixels[value], masks[value]) for value in sorted(pixels)}


def _value_notes(problems: Sequence[Problem], unknown: Collection[int]) -> list[str]:
    """The unknown values over all masks, those in most masks first, and the advice of the first reason."""
    found = {value: held for value, held in raw_values(problems).items() if value in unknown}
    ranked = sorted(found.items(), key=lambda item: (-item[1][1], item[0]))
    notes = [
        f"value {value}: {pixels:,} pixel{'s' if pixels > 1 else ''} in {masks:,} mask{'s' if masks > 1 else ''}"
        for value, (pixels, masks) in ranked[:MAX_VALUES]
    ]
    notes += [f"and {len(ranked) - MAX_VALUES} more values"] if len(ranked) > MAX_VALUES else []
    return [*notes, problems[0].reason.partition("; ")[2]]


def absent_classes(scans: Mapping[str, ScanResult], names: Sequence[str]) -> list[Finding]:
    """Classes of which a split has no pixel (with multi-label: no positive) in its good masks."""
    notes, count = [], 0
    for split, scan in scans.items():
        found = scan.frequencies
        absent = [
            name if found.valid is None else f"{name} ({_labelled(int(found.valid[number]))})"
            for number, name in enumerate(names)
            if not found.pixels[number]
        ]
        if absent and len(scan.samples):
            count += len(absent)
            left_out = " (its bad files are not counted)" if scan.problems else ""
            notes.append(f"{split}: {', '.join(absent)}{left_out}")
    return [Finding("absent_classes", count, notes)] if notes else []


def _labelled(count: int) -> str:
    return f"{count:,} pixels say no" if count else "labelled nowhere"


def no_negatives(scans: Mapping[str, ScanResult], names: Sequence[str], root: Path) -> list[Finding]:
    """Classes, where they do not exclude each other, of which every labelled pixel of a split says yes; with the masks
    that say so of one of them."""
    notes, entries, count = [], [], 0
    for split, scan in scans.items():
        if scan.labels is None or not len(scan.samples):
            continue
        positives, negatives, _ = np.split(scan.labels, 3, axis=1)
        lacking = (negatives.sum(axis=0) == 0) & (positives.sum(axis=0) > 0)
        if not lacking.any():
            continue
        chosen = np.flatnonzero(lacking).tolist()
        count += len(chosen)
        notes.append(f"{split}: {', '.join(names[number] for number in chosen)}")
        for row in np.flatnonzero(positives[:, chosen].any(axis=1)).tolist():
            sample = scan.samples[row]
            entries.append(Entry(split, relative(sample.mask or sample.image, root)))
    return [Finding("no_negatives", count, notes, entries)] if notes else []


def empty_masks(scans: Mapping[str, ScanResult], root: Path) -> list[Finding]:
    """Good samples without one pixel of a class; with multi-label those without a yes or no of any class."""
    entries = []
    for split, scan in scans.items():
        labelled = scan.counts[:, :-1] if scan.labels is None else scan.labels[:, : 2 * (scan.labels.shape[1] // 3)]
        for row in np.flatnonzero(~labelled.any(axis=1)).tolist():
            sample = scan.samples[row]
            entries.append(Entry(split, relative(sample.mask or sample.image, root)))
    return [Finding("empty_masks", len(entries), [], entries)] if entries else []


def unused_masks(scans: Mapping[str, ScanResult], root: Path) -> list[Finding]:
    """Masks that no image belongs to."""
    entries = [Entry(split, relative(path, root)) for split, scan in scans.items() for path in scan.unused_masks]
    return [Finding("unused_masks", len(entries), [], entries)] if entries else []


def near_duplicates(pairs: Sequence[Across], scans: Mapping[str, ScanResult], root: Path) -> list[Finding]:
    """Pairs of images of different splits that look the same, the most alike first."""
    notes, entries = [], []
    for one in pairs:
        if not len(one.matches):
            continue
        sides = ((one.first_split, one.matches.first), (one.second_split, one.matches.second))
        held = [f"{len(np.unique(rows)):,} of {len(scans[split].samples):,} images of {split}" for split, rows in sides]
        more = "" if one.matches.complete else "; the search stopped there: choose a lower --threshold"
        notes.append(f"{held[0]} look like {held[1]}{more}")
        first, second = (scans[split].samples for split, _ in sides)
        rows = zip(one.matches.first.tolist(), one.matches.second.tolist(), one.matches.distance.tolist(), strict=True)
        for mine, theirs, distance in rows:
            ours, other = (relative(image, root) for image in (first[mine].image, second[theirs].image))
            entries.append(Entry(f"{one.first_split}/{one.second_split}", ours, "", other, distance))
    entries.sort(key=lambda entry: (entry.distance, entry.file, entry.other))
    return [Finding("near_duplicates", len(entries), notes, entries)] if entries else []


def suspicions(texts: Sequence[str]) -> list[Finding]:
    """Suspicions of label shifts; see segtrain.data.validation.suspicions."""
    return [Finding("label_shift", len(texts), list(texts))] if texts else []


def unusable_splits(reasons: Mapping[str, str]) -> list[Finding]:
    """Splits whose samples cannot be listed, with the reason."""
    entries = [Entry(split, "", reason) for split, reason in reasons.items()]
    return [Finding("unusable_split", len(entries), [], entries)] if entries else []
