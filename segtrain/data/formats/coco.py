"""The layout `coco`: regions in one JSON file for each split, drawn as masks, or segments of panoptic PNGs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segtrain.config.data import DataConfig
from segtrain.config.layouts import RAW_IGNORED, RAW_NONE
from segtrain.data.extras import require
from segtrain.data.formats.base import HeaderCheck, Layout, Listing, MaskReader, Sample, require_folder
from segtrain.data.formats.coco_index import CocoIndex, Region, open_index
from segtrain.data.formats.coco_panoptic import PanopticMasks
from segtrain.data.formats.coco_shapes import BadRegion, checked_runs, inside
from segtrain.data.formats.labels import NameRules, raw_value
from segtrain.data.images import AnyArray
from segtrain.data.problems import FileProblem, Kind, Problem
from segtrain.errors import DataError

Mask = NDArray[np.bool_]


def _find(data: DataConfig, root: Path, split: str) -> Listing:
    """The images that root/<splits[split]> names, below the folder of data.coco.images."""
    assert data.coco is not None, "the schema asks for it"
    path = root / data.splits[split]
    index = open_index(path)
    _check_kind(data, split, index)
    _rules(data).values(index.used_categories(), source=path)
    folder = root / data.coco.images.get(split, ".")
    require_folder(folder, split=split, keys=f"data.root / data.coco.images.{split}")
    masks = index.mask_names or ("",) * len(index.file_names)
    samples, problems = [], []
    first: dict[str, Path] = {}
    for key, file_name, mask_name in zip(index.image_ids.tolist(), index.file_names, masks, strict=True):
        image = folder / file_name
        name = Path(file_name).with_suffix("").as_posix().lstrip("/")
        if first.setdefault(name, image) is not image:
            problems.append(Problem(image, f"{path} names this sample twice: {name}", Kind.AMBIGUOUS))
        elif not image.is_file():
            problems.append(Problem(image, f"no such image (named in {path})", Kind.MISSING))
        elif index.mask_names is None:
            samples.append(Sample(name, image, path, key))
        elif mask_name and (mask := root / data.coco.masks[split] / mask_name).is_file():
            samples.append(Sample(name, image, mask, key, files=(str(mask), str(path))))
        else:
            problems.append(Problem(image, _lost_mask(data, split, mask_name, path), Kind.MISSING))
    if not first:
        raise DataError(f"split {split!r}: {path} names no images")
    order = sorted(range(len(samples)), key=lambda place: samples[place].name)
    return Listing([samples[place] for place in order], problems)


def _check_kind(data: DataConfig, split: str, index: CocoIndex) -> None:
    """Raise where data.coco.masks does not fit the kind of file."""
    assert data.coco is not None, "the schema asks for it"
    if index.mask_names is None:
        if data.coco.masks:
            raise DataError(
                f"data.coco.masks is for panoptic files, and {index.path} has no segments_info: drop it, or name the "
                f"panoptic file in data.splits.{split}"
            )
        require("pycocotools.mask", extra="coco", what="layout: coco draws polygons")
    elif split not in data.coco.masks:
        raise DataError(
            f"{index.path} is a panoptic file, whose segments are in PNGs: say where in data.coco.masks.{split}, such "
            f"as {index.path.stem}"
        )


def _lost_mask(data: DataConfig, split: str, mask_name: str, path: Path) -> str:
    assert data.coco is not None, "the schema asks for it"
    if not mask_name:
        return f"no panoptic annotation in {path}"
    return f"no mask: expected {mask_name} in data.coco.masks.{split}: {data.coco.masks[split]}"


def _exists(data: DataConfig, root: Path, split: str) -> bool:
    return (root / data.splits[split]).exists()


def _rules(data: DataConfig) -> NameRules:
    assert data.coco is not None, "the schema asks for it"
    return NameRules.from_config(data, others=data.coco.others)


def _reader(data: DataConfig) -> MaskReader:
    assert data.coco is not None, "the schema asks for it"
    unlabeled = raw_value(data, data.coco.unlabeled)
    crowd = None if data.coco.crowd == "class" else raw_value(data, data.coco.crowd)
    if data.coco.masks:
        return PanopticMasks(data.max_pixels, _rules(data), unlabeled, crowd)
    if data.labels == "multi_label":
        return CocoLabels(
            data.max_pixels,
            _rules(data),
            unlabeled,
            crowd is not None,
            num_classes=len(data.classes),
            ignore_index=data.ignore_index,
        )
    return CocoMasks(data.max_pixels, _rules(data), unlabeled, crowd)


@dataclass(frozen=True)
class CocoMasks:
    """Masks drawn from the regions of a COCO file: crowd regions first, then the larger before the smaller ones.

    unlabeled: the raw value of pixels without a region. crowd: that of crowd regions; None: that of their category.
    """

    max_pixels: int
    rules: NameRules
    unlabeled: int
    crowd: int | None

    def __call__(self, sample: Sample, *, check: HeaderCheck | None = None) -> AnyArray:
        """Return the raw values of the sample's regions, uint16 [H, W]; a JSON file has no header to check."""
        regions, values, runs, size = drawn(sample, self.rules, max_pixels=self.max_pixels)
        order = sorted(range(len(runs)), key=lambda place: (not regions[place].crowd, -sum(runs[place][1::2])))
        raw = np.full(size[0] * size[1], self.unlabeled, np.uint16)  # column by column, as the runs are
        for place in order:
            region = regions[place]
            crowd = self.crowd if region.crowd else None
            raw[inside(runs[place])] = values[place] if crowd is None else crowd
        return np.ascontiguousarray(raw.reshape(size[1], size[0]).T)


@dataclass(frozen=True)
class CocoLabels:
    """A yes or no of each class at each pixel: yes where any of its regions lies, whatever else lies there.

    unlabeled: the raw value of pixels without a region. ignores_crowd: crowd regions are ignored for their class, where
    none of its other regions lies. Categories to be ignored are so for all classes that are not there.
    """

    max_pixels: int
    rules: NameRules
    unlabeled: int
    ignores_crowd: bool
    num_classes: int
    ignore_index: int

    def __call__(self, sample: Sample, *, check: HeaderCheck | None = None) -> AnyArray:
        """Return uint8 [C, H, W] of 0, 1 and ignore_index; a JSON file has no header to check."""
        regions, values, runs, size = drawn(sample, self.rules, max_pixels=self.max_pixels)
        present = np.zeros((self.num_classes, size[0] * size[1]), np.bool_)  # column by column, as the runs are
        ignored, bare = np.zeros_like(present), np.ones(present.shape[1], np.bool_)
        for region, value, lengths in zip(regions, values, runs, strict=True):
            pixels = inside(lengths)
            bare &= ~pixels
            _mark(value, pixels, maps=ignored if region.crowd and self.ignores_crowd else present, ignored=ignored)
        _mark(self.unlabeled, bare, maps=present, ignored=ignored)
        labels = present.astype(np.uint8)
        labels[ignored & ~present] = self.ignore_index
        return np.ascontiguousarray(labels.reshape(-1, size[1], size[0]).transpose(0, 2, 1))


def _mark(value: int, pixels: Mask, *, maps: Mask, ignored: Mask) -> None:
    """Enter pixels with a raw value: in the map of a class, for RAW_IGNORED as ignored in all, for RAW_NONE nowhere."""
    if value == RAW_IGNORED:
        ignored |= pixels
    elif value != RAW_NONE:
        maps[value] |= pixels


def drawn(
    sample: Sample, rules: NameRules, *, max_pixels: int
) -> tuple[list[Region], list[int], list[list[int]], tuple[int, int]]:
    """The regions of a sample, the raw value and the runs of each, and height and width of its image.

    Raises:
        FileProblem: too many pixels, or a region that cannot be drawn.
    """
    if sample.mask is None or sample.key is None:
        raise FileProblem(sample.image, "has no regions", Kind.MISSING)
    index = open_index(sample.mask)
    height, width, regions = index.regions(sample.key)
    if height * width > max_pixels:
        reason = f"{sample.name}: {width}x{height} pixels are more than data.max_pixels: {max_pixels}"
        raise FileProblem(sample.mask, reason, Kind.TOO_LARGE)
    names = [index.categories[region.category] for region in regions]
    values = rules.values(set(names), source=sample.mask)
    try:
        runs = [checked_runs(region, (height, width)) for region in regions]
    except BadRegion as error:
        raise FileProblem(sample.mask, f"{sample.name}: {error}", Kind.UNREADABLE) from error
    return regions, [values[name] for name in names], runs, (height, width)


COCO = Layout(_find, _exists, _reader)
