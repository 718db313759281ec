"""A COCO file in memory: its images in arrays, and the regions of each image as text until they are asked for."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtrain.data.problems import FileProblem, Kind
from segtrain.errors import DataError, some

Stamp = tuple[int, int]


@dataclass(frozen=True)
class Region:
    """One annotation: its number in the file, its category and its shape."""

    number: int
    category: int
    crowd: bool
    segmentation: Any


@dataclass(frozen=True, eq=False)
class CocoIndex:
    """The images of a COCO file in the order of their ids, and the regions of each.

    image_ids: int64 [N]. sizes: int64 [N, 2], height and width. text: the regions of all images as JSON, one after the
    other; those of image i end at ends[i]. categories: the name of each category's id. mask_names: of a panoptic file
    the PNG of each image, "" where it has none; its regions are the segments, without a shape. Else None.
    """

    path: Path
    categories: dict[int, str]
    used: tuple[int, ...]
    image_ids: NDArray[np.int64]
    file_names: tuple[str, ...]
    sizes: NDArray[np.int64]
    text: bytes
    ends: NDArray[np.int64]
    mask_names: tuple[str, ...] | None = None

    def used_categories(self) -> list[str]:
        """Names of the categories that regions have, in the order of their ids."""
        return list(dict.fromkeys(self.categories[number] for number in self.used))

    def regions(self, key: int) -> tuple[int, int, list[Region]]:
        """Height and width of an image, and its regions in the order of the file; raises FileProblem."""
        place = int(np.searchsorted(self.image_ids, key))
        if place == len(self.image_ids) or self.image_ids[place] != key:
            raise FileProblem(self.path, f"has no image with the id {key} any more", Kind.MISSING)
        start = int(self.ends[place - 1]) if place else 0
        entries = json.loads(self.text[start : int(self.ends[place])])
        height, width = self.sizes[place].tolist()
        return height, width, [Region(*entry) for entry in entries]


def open_index(path: Path) -> CocoIndex:
    """Read a COCO file; workers that are forked later share what is remembered of it.

    Raises:
        DataError: a file that cannot be read, or does not hold what COCO files hold.
    """
    try:
        state = path.stat()
        return _remembered(path, (state.st_size, state.st_mtime_ns))
    except OSError as error:
        raise DataError(f"the annotations {path} cannot be read ({error.strerror or error})") from error


@lru_cache(maxsize=4)
def _remembered(path: Path, stamp: Stamp) -> CocoIndex:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON file ({error})") from error
    lost = [key for key in ("images", "annotations", "categories") if not isinstance(_get(content, key), list)]
    if lost:
        raise DataError(f"{path} is no COCO file of regions: it has no list {', '.join(lost)}")
    try:
        return _build(path, content)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{path}: an entry is not as in COCO files ({type(error).__name__}: {error})") from error


def _get(content: Any, key: str) -> Any:
    return content.get(key) if isinstance(content, dict) else None


def _build(path: Path, content: dict[str, Any]) -> CocoIndex:
    categories = {_whole(entry["id"]): str(entry["name"]) for entry in content["categories"]}
    images = sorted(content["images"], key=lambda entry: _whole(entry["id"]))
    masks = _panoptic_masks(path, content["annotations"])
    regions = _regions(content["annotations"]) if masks is None else _segments(content["annotations"])
    ids = [entry["id"] for entry in images]
    repeated = sorted({one for one, other in pairwise(ids) if one == other})
    if repeated:
        raise DataError(f"{path}: image ids that stand there more than once: {some(repeated, limit=10)}")
    used = tuple(sorted({region[1] for key in ids for region in regions[key]}))
    unknown = [number for number in used if number not in categories]
    if unknown:
        raise DataError(f"{path}: annotations of categories that are not listed: {some(unknown, limit=10)}")
    texts = [json.dumps(regions[key]).encode() for key in ids]
    return CocoIndex(
        path,
        categories,
        used,
        image_ids=np.array(ids, np.int64),
        file_names=tuple(str(entry["file_name"]) for entry in images),
        sizes=np.array([(_whole(entry["height"]), _whole(entry["width"])) for entry in images], np.int64).reshape(
            -1, 2
        ),
        text=b"".join(texts),
        ends=np.cumsum([len(text) for text in texts], dtype=np.int64),
        mask_names=None if masks is None else tuple(masks.get(key, "") for key in ids),
    )


Regions = defaultdict[int, list[tuple[Any, ...]]]


def _regions(annotations: list[dict[str, Any]]) -> Regions:
    """Number, category, crowd and shape of each region, by the id of its image."""
    regions: Regions = defaultdict(list)
    for number, entry in enumerate(annotations):
        shape = entry.get("segmentation", [])
        region = (entry.get("id", number), _whole(entry["category_id"]), bool(entry.get("iscrowd", 0)), shape)
        regions[_whole(entry["image_id"])].append(region)
    return regions


def _segments(annotations: list[dict[str, Any]]) -> Regions:
    """The same of the segments of a panoptic file, which have no shape there."""
    regions: Regions = defaultdict(list)
    for entry in annotations:
        for part in entry["segments_info"]:
            segment = (_whole(part["id"]), _whole(part["category_id"]), bool(part.get("iscrowd", 0)), None)
            regions[_whole(entry["image_id"])].append(segment)
    return regions


def _panoptic_masks(path: Path, annotations: list[dict[str, Any]]) -> dict[int, str] | None:
    """The PNG of each image of a panoptic file; None for files of regions."""
    kinds = {"segments_info" in entry for entry in annotations}
    if kinds == {True, False}:
        raise DataError(f"{path}: some annotations are panoptic (segments_info), and some are regions")
    if kinds != {True}:
        return None
    masks: dict[int, str] = {}
    for entry in annotations:
        key = _whole(entry["image_id"])
        if masks.setdefault(key, str(entry["file_name"])) != str(entry["file_name"]):
            raise DataError(f"{path}: the image {key} has two panoptic annotations")
    return masks


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError(f"expected a whole number, found {value!r}")
    return value
