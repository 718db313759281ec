"""Finds the samples of a split: the layouts in which people keep images and masks."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from segtrain.config.data import DataConfig
from segtrain.data.headers import SUFFIXES
from segtrain.data.problems import Kind, Problem
from segtrain.errors import ConfigError, DataError, listing


@dataclass(frozen=True)
class Sample:
    """One image and its mask; `name` is unique in the split: a posix path without suffix."""

    name: str
    image: Path
    mask: Path | None


@dataclass(frozen=True)
class Listing:
    """What a split holds: usable samples in the order of their names (or lines), and files with a reason.

    unused_masks: masks without an image, which are no error.
    """

    samples: list[Sample]
    problems: list[Problem]
    unused_masks: list[Path] = field(default_factory=list)


def find_samples(data: DataConfig, split: str) -> Listing:
    """List the samples of a split and what is wrong with the others.

    Raises:
        DataError: missing root or split, or a split without any image.
    """
    if split not in data.splits:
        raise DataError(f"data.splits has no {split!r}; it has: {', '.join(data.splits)}")
    ensure_data(data)
    root = data_root(data)
    if not root.is_dir():
        raise DataError(f"data.root: no folder {root} (seen from {Path.cwd()}); see data/README.md for the layouts")
    return FORMATS[data.layout](data, root, split)


def ensure_data(data: DataConfig) -> None:
    """Draw the data set of data.generate if its folder does not exist yet.

    Raises:
        DataError: the folder holds something else than this very set.
    """
    if data.generate is None:
        return
    from segtrain.data import synthetic  # only the quickstart needs it

    root = data_root(data)
    if root.exists():
        synthetic.check_generated(root, data.generate)
    else:
        synthetic.generate(root, data.generate)


def data_root(data: DataConfig) -> Path:
    """The folder of the data set."""
    return Path(data.root).expanduser()


def bad_files(problems: list[Problem], data: DataConfig, *, split: str, nothing_left: bool = False) -> DataError:
    """One error that lists bad files with their reasons: at most 20, and the total."""
    number = f"{len(problems)} bad file{'s' if len(problems) != 1 else ''}"
    head = f"{number} in split {split!r} of {data_root(data)}"
    advice = "nothing is left to use" if nothing_left else "mend them, or leave them out with data.on_bad: skip"
    return DataError(listing(f"{head}: {advice}", [f"{problem.path}: {problem.reason}" for problem in problems]))


def _find_in_folders(data: DataConfig, root: Path, split: str) -> Listing:
    """images/<split>/a/b.jpg goes with masks/<split>/a/b.png, whatever the suffixes."""
    image_folder = root / data.images / data.splits[split]
    mask_folder = root / data.masks / data.splits[split]
    for folder, key in ((image_folder, "images"), (mask_folder, "masks")):
        if not folder.is_dir():
            raise DataError(f"split {split!r}: no folder {folder} (data.root / data.{key} / data.splits.{split})")
    images, masks = _by_stem(image_folder), _by_stem(mask_folder)
    if not images:
        raise DataError(f"split {split!r}: no images in {image_folder}; looked for {_suffixes()}")
    samples, problems = [], []
    for name, found in images.items():
        candidates = masks.get(name, [])
        if len(found) > 1:
            problems.append(Problem(found[0], f"the same stem twice: {_names(found)}", Kind.AMBIGUOUS))
        elif not candidates:
            expected = mask_folder / f"{name}.png"
            reason = f"no mask: expected {expected} (or {_suffixes(without='.png')})"
            problems.append(Problem(found[0], reason, Kind.MISSING))
        elif len(candidates) > 1:
            problems.append(Problem(candidates[0], f"two masks for one image: {_names(candidates)}", Kind.AMBIGUOUS))
        else:
            samples.append(Sample(name, found[0], candidates[0]))
    unused = [path for name, found in masks.items() if name not in images for path in found]
    return Listing(samples, problems, unused)


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(image_files(folder)):
        found[path.relative_to(folder).with_suffix("").as_posix()].append(path)
    return dict(sorted(found.items()))


def image_files(folder: Path) -> Iterator[Path]:
    """Yield the image files below a folder, in any order: hidden ones left out, links to folders followed once."""
    visited = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:  # a link back up
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:  # noqa: PTH122 - per file
                yield Path(place, name)


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _suffixes(*, without: str = "") -> str:
    return " ".join(suffix for suffix in SUFFIXES if suffix != without)


def _find_in_lists(data: DataConfig, root: Path, split: str) -> Listing:
    """Each line of root/<splits[split]> names an image and its mask, relative to root.

    The two are separated by a tab, else by a comma, else by blanks; empty lines and # comments are passed over.
    """
    if (data.images, data.masks) != ("images", "masks"):
        raise ConfigError("data.images and data.masks belong to layout: folders; with lists, paths start at data.root")
    path = root / data.splits[split]
    samples, problems = [], []
    lines: dict[str, int] = {}
    for number, image, mask in _pairs(path, split):
        name = image.with_suffix("").as_posix().lstrip("/")
        first = lines.setdefault(name, number)
        if first != number:
            problems.append(Problem(path, f"lines {first} and {number} name the same sample: {name}", Kind.AMBIGUOUS))
        elif not (root / image).is_file():
            problems.append(Problem(root / image, f"no such image (line {number} of {path})", Kind.MISSING))
        elif not (root / mask).is_file():
            problems.append(Problem(root / mask, f"no such mask (line {number} of {path})", Kind.MISSING))
        else:
            samples.append(Sample(name, root / image, root / mask))
    if not lines:
        raise DataError(f"split {split!r}: {path} names no samples")
    return Listing(samples, problems)


def _pairs(path: Path, split: str) -> list[tuple[int, Path, Path]]:
    pairs, malformed = [], []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"split {split!r}: the list {path} cannot be read ({error})") from error
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        separator = next((mark for mark in ("\t", ",") if mark in stripped), None)
        fields = [field.strip() for field in stripped.split(separator)]
        if len(fields) != 2 or not all(fields):
            malformed.append(f"line {number}: {stripped!r}")
        else:
            pairs.append((number, Path(fields[0]), Path(fields[1])))
    if malformed:
        head = f"{path}: expected an image and a mask in each line; lines that do not fit: {len(malformed)}"
        raise DataError(listing(head, malformed))
    return pairs


FORMATS: dict[str, Callable[[DataConfig, Path, str], Listing]] = {
    "folders": _find_in_folders,
    "lists": _find_in_lists,
}


def present_splits(data: DataConfig) -> list[str]:
    """Return the configured splits whose folder or list file exists, in the order of data.splits."""
    root = data_root(data)
    where = {"folders": root / data.images, "lists": root}[data.layout]
    return [split for split, place in data.splits.items() if (where / place).exists()]
