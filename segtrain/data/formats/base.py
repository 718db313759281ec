"""What every layout gives: samples, what is wrong with the others, and a way to read the raw mask of a sample."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from segtrain.config.data import DataConfig
from segtrain.data.headers import SUFFIXES, Header
from segtrain.data.images import AnyArray
from segtrain.data.problems import Kind, Problem
from segtrain.errors import DataError, listing


@dataclass(frozen=True)
class Sample:
    """One image and its mask; `name` is unique in the split: a posix path without suffix.

    mask: the file that holds the mask, which may hold those of other samples as well; None where there is none.
    key: by which number such a file knows this sample. files: where it takes several files to know the mask, their
    paths: one for each class in class order, "" where there is none, or a panoptic PNG and its JSON file. All fields
    can be packed into arrays (see samples.py).
    """

    name: str
    image: Path
    mask: Path | None
    key: int | None = None
    files: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Listing:
    """What a split holds: usable samples in the order of their names (or lines), and files with a reason.

    unused_masks: masks without an image, which are no error. columns: what else a table says of each sample.
    """

    samples: Sequence[Sample]
    problems: list[Problem]
    unused_masks: list[Path] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)


class HeaderCheck(Protocol):
    """Looks at the header of a file before its pixels are decoded; raises FileProblem."""

    def __call__(self, header: Header, path: Path, /) -> None: ...


class MaskReader(Protocol):
    """Reads the raw mask of a sample, whose values LabelRules then turns into classes.

    It can be pickled, threads share it, and it holds nothing large: workers get a copy each. Its repr tells all on
    which the masks depend besides the files of the samples: the scan's cache is valid for that.
    """

    def __call__(self, sample: Sample, *, check: HeaderCheck | None = None) -> AnyArray:
        """Return uint8, uint16 or int32 [H, W]; `check` is called with the header of each mask file that is read.

        Where classes may overlap and each has a file, uint8 [C, H, W] of 0, 1 and ignore_index.

        Raises:
            FileProblem: the mask cannot be read.
        """
        ...


@dataclass(frozen=True)
class Layout:
    """One way to keep images and masks.

    find: the samples of a split under a root; raises DataError where there are none.
    exists: whether a split is there at all.
    reader: how its raw masks are read.
    """

    find: Callable[[DataConfig, Path, str], Listing]
    exists: Callable[[DataConfig, Path, str], bool]
    reader: Callable[[DataConfig], MaskReader]


def image_files(folder: Path) -> Iterator[Path]:
    """Yield the image files below a folder, in any order: hidden ones left out, links to folders followed once."""
    return map(Path, _image_texts(folder))


def _image_texts(folder: Path) -> Iterator[str]:
    """Their paths as texts."""
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
                yield os.path.join(place, name)  # noqa: PTH118 - per file


def by_stem(folder: Path) -> dict[str, list[Path]]:
    """The image files below a folder by their path without suffix, in the order of these."""
    found: dict[str, list[str]] = defaultdict(list)
    start = len(os.path.join(folder, ""))  # noqa: PTH118 - texts: comparing and cutting Paths takes three times as long
    for text in _image_texts(folder):
        found[os.path.splitext(text[start:])[0].replace(os.sep, "/")].append(text)  # noqa: PTH122
    return {stem: [Path(text) for text in sorted(texts)] for stem, texts in sorted(found.items())}


def pair_by_stem(
    images: dict[str, list[Path]], masks: dict[str, list[Path]], *, expected: Callable[[str], str]
) -> Listing:
    """Pair images and masks of one name; `expected` says which mask was looked for."""
    samples, problems = [], []
    for name, found in images.items():
        candidates = masks.get(name, [])
        if len(found) > 1:
            problems.append(Problem(found[0], f"the same stem twice: {file_names(found)}", Kind.AMBIGUOUS))
        elif not candidates:
            problems.append(Problem(found[0], f"no mask: expected {expected(name)}", Kind.MISSING))
        elif len(candidates) > 1:
            reason = f"two masks for one image: {file_names(candidates)}"
            problems.append(Problem(candidates[0], reason, Kind.AMBIGUOUS))
        else:
            samples.append(Sample(name, found[0], candidates[0]))
    unused = [path for name, found in masks.items() if name not in images for path in found]
    return Listing(samples, problems, unused)


@dataclass(frozen=True)
class Row:
    """One line of a list or table: where it stands, and the image and mask that it names, relative to a folder."""

    number: int
    image: Path
    mask: Path

    @property
    def name(self) -> str:
        """The name of the sample."""
        return self.image.with_suffix("").as_posix().lstrip("/")


def pair_by_rows(rows: Iterable[Row], *, folder: Path, source: Path) -> Listing:
    """The pairs that the lines of `source` name, where both files exist and no sample comes twice."""
    samples, problems = [], []
    lines: dict[str, int] = {}
    for row in rows:
        name = row.name
        first = lines.setdefault(name, row.number)
        if first != row.number:
            reason = f"lines {first} and {row.number} name the same sample: {name}"
            problems.append(Problem(source, reason, Kind.AMBIGUOUS))
            continue
        missing = [kind for kind, path in (("image", row.image), ("mask", row.mask)) if not (folder / path).is_file()]
        if missing:
            path = folder / (row.image if missing[0] == "image" else row.mask)
            problems.append(Problem(path, f"no such {missing[0]} (line {row.number} of {source})", Kind.MISSING))
        else:
            samples.append(Sample(name, folder / row.image, folder / row.mask))
    return Listing(samples, problems)


def require_folder(folder: Path, *, split: str, keys: str) -> None:
    """Raise DataError, naming the keys that led there, where a folder is missing."""
    if not folder.is_dir():
        raise DataError(f"split {split!r}: no folder {folder} ({keys})")


def read_text(path: Path, *, what: str) -> str:
    """The text of a file of the layout; raises DataError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{what} {path} cannot be read ({error})") from error


def read_bytes(path: Path, *, what: str) -> bytes:
    """The bytes of a file of the layout; raises DataError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read ({error})") from error


def read_stems(path: Path, *, split: str) -> list[str]:
    """The lines of a list of names (VOC's ImageSets); raises DataError for none or repeats."""
    text = read_text(path, what=f"split {split!r}: the list")
    stems = [line.strip() for line in text.splitlines() if line.strip()]
    if not stems:
        raise DataError(f"split {split!r}: {path} names no samples")
    repeated = [stem for stem, count in Counter(stems).items() if count > 1]
    if repeated:
        raise DataError(listing(f"{path}: names that stand there more than once: {len(repeated)}", repeated))
    return stems


def file_names(paths: Iterable[Path]) -> str:
    """The names of files, without their folders."""
    return ", ".join(path.name for path in paths)


def suffixes(*, without: str = "") -> str:
    """The suffixes of image files."""
    return " ".join(suffix for suffix in SUFFIXES if suffix != without)
