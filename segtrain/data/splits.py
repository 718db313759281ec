"""Makes new splits of a data set: which sample goes where, what each split then holds, and the list files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segtrain.config.data import DataConfig
from segtrain.data.formats import Sample, data_root, find_samples
from segtrain.data.frequencies import check_split
from segtrain.data.samples import Samples
from segtrain.data.stratify import Counts, Stock, stratify
from segtrain.errors import ConfigError, DataError, SegtrainError, listing
from segtrain.files import write_whole

Bools = NDArray[np.bool_]
LAYOUTS_WITHOUT_MASK_FILES: Final = ("coco", "cvat", "mask_per_class")
TOLERANCE: Final = 1e-6


@dataclass(frozen=True, eq=False)
class Material:
    """The samples to be shared out: pixels of each class int64 [N, C], and the columns of their table, if any."""

    samples: Samples[Sample]
    counts: Counts
    columns: Mapping[str, Sequence[Any]]
    sources: tuple[str, ...]
    source: NDArray[np.int64]
    num_bad: int


@dataclass(frozen=True, eq=False)
class Shares:
    """New splits: the number of the split of each sample, int64 [N], and of its group, int64 [N]."""

    names: tuple[str, ...]
    fractions: NDArray[np.float64]
    assigned: NDArray[np.int64]
    groups: NDArray[np.int64]
    counts: Counts

    def pixels(self) -> Counts:
        """Pixels of each class in each split, int64 [K, C]."""
        return self._sum(self.counts)

    def images(self) -> Counts:
        """Images that hold each class in each split, int64 [K, C]."""
        return self._sum(self.counts > 0)

    def num_images(self) -> Counts:
        """Images in each split, int64 [K]."""
        return np.bincount(self.assigned, minlength=len(self.names))

    def num_groups(self) -> Counts:
        """Groups in each split, int64 [K]."""
        split_of_group = self.assigned[np.unique(self.groups, return_index=True)[1]]
        return np.bincount(split_of_group, minlength=len(self.names))

    def cost(self) -> float:
        """How far the splits are from what was asked; see Stock.cost."""
        stock = Stock.count(self.counts, self.groups, self.fractions)
        split_of_group = self.assigned[np.unique(self.groups, return_index=True)[1]]
        sums = np.stack([stock.shares[split_of_group == split].sum(axis=0) for split in range(len(self.names))])
        return float(stock.cost(sums))

    def gaps(self, classes: Sequence[str]) -> list[str]:
        """Say of each class that is not in every split why not."""
        images = self.images()
        lines = []
        for number, name in enumerate(classes):
            without = [split for split, count in zip(self.names, images[:, number], strict=True) if not count]
            if not without:
                continue
            holding = np.unique(self.groups[self.counts[:, number] > 0])
            lines.append(
                f"{name} is not in {', '.join(without)}: {self._why(len(holding), int(images[:, number].sum()))}"
            )
        return lines

    def _why(self, num_groups: int, num_images: int) -> str:
        num_splits = len(self.names)
        if not num_images:
            return "no image holds it"
        images = f"{num_images} image{'s' if num_images > 1 else ''}"
        if num_groups < num_splits:
            groups = f"{num_groups} group{'s' if num_groups > 1 else ''}"
            held = f"{groups} ({images})" if num_images > num_groups else images
            return f"it occurs in {held} only, and there are {num_splits} splits"
        return f"each of the {num_groups} groups that hold it is needed elsewhere for another class: try another --seed"

    def _sum(self, values: NDArray[Any]) -> Counts:
        return np.stack([values[self.assigned == split].sum(axis=0) for split in range(len(self.names))])


def gather(data: DataConfig, sources: Sequence[str], *, workers: int | None = None, cache: bool = True) -> Material:
    """Check the samples of some splits, and put them together: each image once, even where several splits list it.

    Raises:
        ConfigError: a layout whose masks are not one file for each image.
        DataError: bad files (unless data.on_bad is skip), or an image that has different masks in two splits.
    """
    if data.layout == "shards":
        raise ConfigError(
            "data.layout shards: lists name files, and the members of tar files are none: give whole shards to each of "
            "data.splits, or unpack them"
        )
    if data.layout in LAYOUTS_WITHOUT_MASK_FILES:
        raise ConfigError(
            f"data.layout {data.layout}: lists name an image and a mask file in each line, and this layout has not one "
            "mask file for each image: convert its masks to PNG files first"
        )
    samples: list[Sample] = []
    counts, columns, source = [], [], []
    seen: dict[Path, Path | None] = {}
    num_bad = 0
    for number, split in enumerate(sources):
        scan = check_split(data, split, workers=workers, cache=cache)
        further = find_samples(data, split).columns
        num_bad += len(scan.problems)
        fresh = []
        for row, (sample, place) in enumerate(zip(scan.samples, scan.good.tolist(), strict=True)):
            if sample.image in seen:
                if seen[sample.image] != sample.mask:
                    raise DataError(f"{sample.image} has two masks: {seen[sample.image]} and {sample.mask} ({split})")
                continue
            seen[sample.image] = sample.mask
            fresh.append(row)
            samples.append(sample)
            columns.append({name: values[place] for name, values in further.items()})
        counts.append(scan.counts[fresh, : len(data.class_names)])
        source += [number] * len(fresh)
    names = set.intersection(*(set(row) for row in columns)) if columns else set()
    table = {name: [row[name] for row in columns] for name in sorted(names)}
    return Material(
        Samples.pack(samples), np.concatenate(counts), table, tuple(sources), np.array(source, np.int64), num_bad
    )


def share_out(counts: Counts, groups: NDArray[np.int64], fractions: Mapping[str, float], *, seed: int = 0) -> Shares:
    """Give each sample a split; samples of one group stay together. See stratify for how.

    Args:
        counts: pixels of each class in each sample, int64 [N, C].
        groups: the group of each sample, int64 [N], numbered from 0 without gaps.
        fractions: of the images, by the names of the splits; they sum to 1.

    Raises:
        ConfigError: fractions that are no parts of a whole.
        DataError: fewer groups than splits.
    """
    parts = np.array(list(fractions.values()), np.float64)
    if len(parts) < 2 or not (parts > 0).all() or abs(parts.sum() - 1) > TOLERANCE:
        told = ", ".join(f"{name}={part:g}" for name, part in fractions.items())
        raise ConfigError(f"fractions of two splits or more, each above 0 and 1 in all; found: {told or 'none'}")
    stock = Stock.count(counts, groups, parts)
    if stock.num_groups < len(parts):
        found = f"{stock.num_groups} group{'s' if stock.num_groups != 1 else ''} of {len(counts)} samples"
        raise DataError(
            f"{len(parts)} splits need as many groups, which are never parted; found {found}. Group by something finer "
            "(sub-folders, regex:PATTERN, column:NAME), drop the grouping, or make fewer splits"
        )
    assigned = stratify(stock, seed=seed)[groups]
    return Shares(tuple(fractions), parts, assigned, groups, counts)


def list_lines(samples: Samples[Sample], chosen: Bools, *, root: Path) -> str:
    """The lines of a list file: image and mask under root, with a tab between them.

    Raises:
        DataError: a file name that would be read as something else.
    """
    lines = []
    for sample in samples.select(chosen):
        assert sample.mask is not None
        paths = [_below(path, root) for path in (sample.image, sample.mask)]
        lines.append("\t".join(paths))
    odd = [line for line in lines if line.count("\t") != 1 or line != line.strip() or len(line.splitlines()) != 1]
    if odd:
        raise DataError(listing("file names with tabs, line breaks or blanks at an end cannot stand in a list:", odd))
    return "".join(f"{line}\n" for line in lines)


def _below(path: Path, root: Path) -> str:
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.resolve().as_posix()
    return f"./{name}" if name.startswith("#") else name


def write_lists(data: DataConfig, lists: Mapping[str, str], *, force: bool) -> None:
    """Write list files under data.root, by their paths there: all of them, or none.

    Raises:
        ConfigError: some of them exist, and `force` is false.
        SegtrainError: they cannot be written; those that were written are removed or put back.
    """
    root = data_root(data)
    files = {root / name: text.encode("utf-8", "surrogateescape") for name, text in lists.items()}
    existing = [path for path in files if path.exists()]
    if existing and not force:
        raise ConfigError(listing("these lists exist already: use --force to replace them, or another --out", existing))
    older = {path: path.read_bytes() for path in existing}
    done: list[Path] = []
    try:
        for path, content in files.items():
            done.append(path)
            write_whole(path, content)
    except BaseException:
        for path in done:
            with suppress(OSError, SegtrainError):  # the first error is the one to tell
                _put_back(path, older.get(path))
        raise


def _put_back(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        write_whole(path, content)  # where there is no room for that either, the list that stands there stays whole
