"""The layout `coco`: regions in one JSON file for each split, drawn as one class for each pixel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtrain.config.data import DataConfig
from segtrain.data.extras import require
from segtrain.data.formats.base import HeaderCheck, Layout, Listing, MaskReader, Sample, require_folder
from segtrain.data.formats.coco_index import CocoIndex, Region, open_index
from segtrain.data.formats.labels import NameRules, raw_value
from segtrain.data.images import AnyArray
from segtrain.data.problems import FileProblem, Kind, Problem
from segtrain.errors import DataError

REACH = 2  # polygons may leave their image by so many of its sizes: further out, drawing them takes no end of memory


def _find(data: DataConfig, root: Path, split: str) -> Listing:
    """The images that root/<splits[split]> names, below the folder of data.coco.images."""
    assert data.coco is not None, "the schema asks for it"
    require("pycocotools.mask", extra="coco", what="layout: coco draws polygons")
    path = root / data.splits[split]
    index = open_index(path)
    _rules(data).values(index.used_categories(), source=path)
    folder = root / data.coco.images.get(split, ".")
    require_folder(folder, split=split, keys=f"data.root / data.coco.images.{split}")
    samples, problems = [], []
    first: dict[str, Path] = {}
    for key, file_name in zip(index.image_ids.tolist(), index.file_names, strict=True):
        image = folder / file_name
        name = Path(file_name).with_suffix("").as_posix().lstrip("/")
        if first.setdefault(name, image) is not image:
            problems.append(Problem(image, f"{path} names this sample twice: {name}", Kind.AMBIGUOUS))
        elif not image.is_file():
            problems.append(Problem(image, f"no such image (named in {path})", Kind.MISSING))
        else:
            samples.append(Sample(name, image, path, key))
    if not first:
        raise DataError(f"split {split!r}: {path} names no images")
    order = sorted(range(len(samples)), key=lambda place: samples[place].name)
    return Listing([samples[place] for place in order], problems)


def _exists(data: DataConfig, root: Path, split: str) -> bool:
    return (root / data.splits[split]).exists()


def _rules(data: DataConfig) -> NameRules:
    assert data.coco is not None, "the schema asks for it"
    return NameRules.from_config(data, others=data.coco.others)


def _reader(data: DataConfig) -> MaskReader:
    assert data.coco is not None, "the schema asks for it"
    crowd = None if data.coco.crowd == "class" else raw_value(data, data.coco.crowd)
    return CocoMasks(data.max_pixels, _rules(data), raw_value(data, data.coco.unlabeled), crowd)


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
        if sample.mask is None or sample.key is None:
            raise FileProblem(sample.image, "has no regions", Kind.MISSING)
        index = open_index(sample.mask)
        height, width, regions = index.regions(sample.key)
        if height * width > self.max_pixels:
            reason = f"{sample.name}: {width}x{height} pixels are more than data.max_pixels: {self.max_pixels}"
            raise FileProblem(sample.mask, reason, Kind.TOO_LARGE)
        try:
            return self._draw(regions, index, (height, width), sample.mask)
        except _BadRegion as error:
            raise FileProblem(sample.mask, f"{sample.name}: {error}", Kind.UNREADABLE) from error

    def _draw(self, regions: list[Region], index: CocoIndex, size: tuple[int, int], path: Path) -> NDArray[np.uint16]:
        values = self.rules.values({index.categories[region.category] for region in regions}, source=path)
        runs = [_checked_runs(region, size) for region in regions]
        order = sorted(range(len(runs)), key=lambda place: (not regions[place].crowd, -sum(runs[place][1::2])))
        raw = np.full(size[0] * size[1], self.unlabeled, np.uint16)  # column by column, as the runs are
        for place in order:
            region = regions[place]
            crowd = self.crowd if region.crowd else None
            # Not by pycocotools, whose decoder warns with NumPy 2.
            inside = np.repeat(np.arange(len(runs[place])) % 2 == 1, runs[place])
            raw[inside] = values[index.categories[region.category]] if crowd is None else crowd
        return np.ascontiguousarray(raw.reshape(size[1], size[0]).T)


class _BadRegion(Exception):
    """A region that cannot be drawn."""


def _checked_runs(region: Region, size: tuple[int, int]) -> list[int]:
    try:
        return _run_lengths(region.segmentation, size)
    except _BadRegion as error:
        raise _BadRegion(f"annotation {region.number} {error}") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise _BadRegion(f"annotation {region.number} cannot be drawn ({error})") from error


def _run_lengths(shape: Any, size: tuple[int, int]) -> list[int]:
    """The lengths of runs, column by column, the first of pixels outside of the region; all pixels are in one."""
    if isinstance(shape, list):
        counts = _numbers(_outline(shape, size))
    elif isinstance(shape, dict) and set(shape) >= {"size", "counts"}:
        if tuple(shape["size"]) != size:
            raise _BadRegion(f"has run lengths for {tuple(shape['size'])}, its image is {size} (height, width)")
        counts = _numbers(shape["counts"].encode()) if isinstance(shape["counts"], str) else shape["counts"]
    else:
        raise _BadRegion("has a segmentation that is neither polygons nor run lengths")
    if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != size[0] * size[1]:
        raise _BadRegion(f"has run lengths that do not add up to the {size[0] * size[1]} pixels of its image")
    return counts


def _outline(shape: list[Any], size: tuple[int, int]) -> bytes:
    """The text of the run lengths of what polygons enclose."""
    tool = require("pycocotools.mask", extra="coco", what="layout: coco draws polygons")
    if not shape:
        raise _BadRegion("has no segmentation")
    parts = tool.frPyObjects([_polygon(part, size) for part in shape], *size)
    return bytes(tool.merge(parts)["counts"])


def _polygon(part: Any, size: tuple[int, int]) -> list[float]:
    """A polygon as x, y, x, y, ... of at least three points; else pycocotools would take it for something else."""
    if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
        raise _BadRegion("has a polygon that is no list of at least three points x, y")
    points = np.array(part, np.float64).reshape(-1, 2)
    height, width = size
    outside = ~(np.abs(points - (width / 2, height / 2)) <= ((0.5 + REACH) * width, (0.5 + REACH) * height))
    if outside.any():  # true for NaN too
        raise _BadRegion(f"has points far outside of its {width}x{height} image")
    return [float(number) for number in part]


def _numbers(text: bytes) -> list[int]:
    """Decode the text form of run lengths: six bits to a character, each run but the first three less the one before
    its predecessor."""
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64:
            raise _BadRegion("has run lengths that are no text of COCO")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise _BadRegion("has run lengths whose text is cut off")
    return counts


COCO = Layout(_find, _exists, _reader)
