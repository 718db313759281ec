"""The shapes of regions in COCO files, polygons and both forms of run lengths, as run lengths that are checked."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtrain.data.extras import require
from segtrain.data.formats.coco_index import Region

REACH = 2  # polygons may leave their image by so many of its sizes: further out, drawing them takes no end of memory


def inside(runs: list[int]) -> NDArray[np.bool_]:
    """The pixels of a region, column by column, bool [H W]: not by pycocotools, whose decoder warns with NumPy 2."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)


class BadRegion(Exception):
    """A region that cannot be drawn."""


def checked_runs(region: Region, size: tuple[int, int]) -> list[int]:
    """The lengths of a region's runs in an image of this height and width, column by column, the first of pixels
    outside of the region; together all pixels.

    Raises:
        BadRegion: it cannot be drawn.
    """
    try:
        return _run_lengths(region.segmentation, size)
    except BadRegion as error:
        raise BadRegion(f"annotation {region.number} {error}") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRegion(f"annotation {region.number} cannot be drawn ({error})") from error


def _run_lengths(shape: Any, size: tuple[int, int]) -> list[int]:
    if isinstance(shape, list):
        counts = _numbers(_outline(shape, size))
    elif isinstance(shape, dict) and set(shape) >= {"size", "counts"}:
        if tuple(shape["size"]) != size:
            raise BadRegion(f"has run lengths for {tuple(shape['size'])}, its image is {size} (height, width)")
        counts = _numbers(shape["counts"].encode()) if isinstance(shape["counts"], str) else shape["counts"]
    else:
        raise BadRegion("has a segmentation that is neither polygons nor run lengths")
    if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != size[0] * size[1]:
        raise BadRegion(f"has run lengths that do not add up to the {size[0] * size[1]} pixels of its image")
    return counts


def _outline(shape: list[Any], size: tuple[int, int]) -> bytes:
    """The text of the run lengths of what polygons enclose."""
    tool = require("pycocotools.mask", extra="coco", what="layout: coco draws polygons")
    if not shape:
        raise BadRegion("has no segmentation")
    parts = tool.frPyObjects([_polygon(part, size) for part in shape], *size)
    return bytes(tool.merge(parts)["counts"])


def _polygon(part: Any, size: tuple[int, int]) -> list[float]:
    """A polygon as x, y, x, y, ... of at least three points; else pycocotools would take it for something else."""
    if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
        raise BadRegion("has a polygon that is no list of at least three points x, y")
    points = np.array(part, np.float64).reshape(-1, 2)
    height, width = size
    outside = ~(np.abs(points - (width / 2, height / 2)) <= ((0.5 + REACH) * width, (0.5 + REACH) * height))
    if outside.any():  # true for NaN too
        raise BadRegion(f"has points far outside of its {width}x{height} image")
    return [float(number) for number in part]


def _numbers(text: bytes) -> list[int]:
    """Decode the text form of run lengths: six bits to a character, each run but the first three less the one before
    its predecessor."""
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64:
            raise BadRegion("has run lengths that are no text of COCO")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise BadRegion("has run lengths whose text is cut off")
    return counts
