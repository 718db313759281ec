"""Finds the samples of a split, and how their masks are read: the layouts in which people keep images and masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segtrain.config.data import DataConfig
from segtrain.data.formats.base import HeaderCheck, Layout, Listing, MaskReader, Sample, image_files
from segtrain.data.formats.coco import COCO
from segtrain.data.formats.folders import ADE20K, CITY_IMAGES, CITYSCAPES, FOLDERS, split_folder
from segtrain.data.formats.image_sets import CVAT, VOC, VOC_IMAGES
from segtrain.data.formats.mask_per_class import MASK_PER_CLASS
from segtrain.data.formats.shards import SHARDS
from segtrain.data.formats.tables import LISTS, TABLE
from segtrain.data.places import data_root
from segtrain.data.problems import Problem
from segtrain.errors import DataError, listing

__all__ = [
    "FORMATS",
    "HeaderCheck",
    "Layout",
    "Listing",
    "MaskReader",
    "Sample",
    "bad_files",
    "data_root",
    "ensure_data",
    "find_samples",
    "image_files",
    "image_folder",
    "mask_reader",
    "present_splits",
    "split_folder",
]

FORMATS: dict[str, Layout] = {
    "folders": FOLDERS,
    "lists": LISTS,
    "table": TABLE,
    "cityscapes": CITYSCAPES,
    "voc": VOC,
    "ade20k": ADE20K,
    "coco": COCO,
    "cvat": CVAT,
    "mask_per_class": MASK_PER_CLASS,
    "shards": SHARDS,
}


def find_samples(data: DataConfig, split: str) -> Listing:
    """List the samples of a split and what is wrong with the others.

    Raises:
        DataError: missing root or split, or a split without any image.
    """
    if split not in data.splits:
        raise DataError(f"data.splits has no {split!r}; it has: {', '.join(data.splits)}")
    ensure_data(data)
    return FORMATS[data.layout].find(data, _existing_root(data), split)


def _existing_root(data: DataConfig) -> Path:
    root = data_root(data)
    if not root.is_dir():
        raise DataError(f"data.root: no folder {root} (seen from {Path.cwd()}); see data/README.md for the layouts")
    return root


def mask_reader(data: DataConfig) -> MaskReader:
    """How the raw masks of this data section are read."""
    return FORMATS[data.layout].reader(data)


def present_splits(data: DataConfig) -> list[str]:
    """Return the configured splits whose folder or list file exists, in the order of data.splits."""
    root = data_root(data)
    return [split for split in data.splits if FORMATS[data.layout].exists(data, root, split)]


def image_folder(data: DataConfig, split: str) -> Path | None:
    """The folder below which the images of a split lie; None where the layout names files rather than a folder."""
    part = data.splits[split]
    folders: dict[str, str] = {
        "cityscapes": f"{CITY_IMAGES}/{part}",
        "voc": VOC_IMAGES,
        "ade20k": f"images/{part}",
        "cvat": data.cvat.images,
        "coco": "." if data.coco is None else data.coco.images.get(split, "."),
        **{layout: split_folder(data.images, part) for layout in ("folders", "mask_per_class")},
    }
    return data_root(data) / folders[data.layout] if data.layout in folders else None


def all_splits(data: DataConfig) -> list[str]:
    """Return the splits that are there, of data that may have to be drawn first.

    Raises:
        DataError: missing root, or none of the splits.
    """
    ensure_data(data)
    root = _existing_root(data)
    present = present_splits(data)
    if not present:
        raise DataError(f"none of the splits {', '.join(data.splits)} is there under {root}")
    return present


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


def bad_files(problems: Sequence[Problem], data: DataConfig, *, split: str, nothing_left: bool = False) -> DataError:
    """One error that lists bad files with their reasons: at most 20, and the total."""
    number = f"{len(problems)} bad file{'s' if len(problems) != 1 else ''}"
    head = f"{number} in split {split!r} of {data_root(data)}"
    advice = "nothing is left to use" if nothing_left else "mend them, or leave them out with data.on_bad: skip"
    return DataError(listing(f"{head}: {advice}", [f"{problem.path}: {problem.reason}" for problem in problems]))
