"""Panels: image, target, prediction and error side by side, with a caption and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from segtrain.drawing.maps import (
    ERROR_COLORS,
    ERROR_NAMES,
    ClassMap,
    Picture,
    colorize,
    error_codes,
    paint_errors,
    shrink_classes,
    shrink_codes,
    to_display,
)
from segtrain.drawing.text import font, shorten, shorten_to_width, text_width

HEADINGS = ("image", "target", "prediction", "error")
SMALLEST_SIDE = 320
LARGEST_SIDE = 1024
GAP = 8
MAX_LEGEND = 30
BACKGROUND = (255, 255, 255)
INK = (20, 20, 20)
SWATCH_EDGE = (110, 110, 110)


@dataclass(frozen=True)
class LegendEntry:
    """A colour and what it means."""

    color: tuple[int, int, int]
    name: str


def panel(
    image: npt.NDArray[Any],
    target: ClassMap,
    prediction: ClassMap,
    *,
    colors: Picture,
    class_names: Sequence[str],
    classes: Sequence[int],
    caption: str = "",
    ignore_index: int = 255,
) -> Picture:
    """Return image | target | prediction | error as one uint8 picture [H, W, 3].

    image: [H, W, C] of any type; target, prediction: class maps [h, w] of one size, the image is resized to it.
    classes: the named classes (numbers) of the error map. Small pictures are enlarged and large ones shrunk by
    whole factors; named classes and errors survive shrinking.
    """
    image = fit(to_display(image), target.shape)
    codes = error_codes(target, prediction, classes=classes, ignore_index=ignore_index)
    found = np.union1d(target, prediction)
    present = [index for index in range(len(class_names)) if index in found]
    factor = -(-max(target.shape) // LARGEST_SIDE)
    if factor > 1:
        target = shrink_classes(target, factor, keep=classes)
        prediction = shrink_classes(prediction, factor, keep=classes)
        codes = shrink_codes(codes, factor)
        image = fit(image, codes.shape)
    target_colors = colorize(target, colors, ignore_index=ignore_index)
    tiles = [image, target_colors, colorize(prediction, colors, ignore_index=ignore_index), paint_errors(image, codes)]
    scale = max(1, -(-SMALLEST_SIDE // max(codes.shape)))
    row = tile_row([tile.repeat(scale, axis=0).repeat(scale, axis=1) for tile in tiles])
    entries = [LegendEntry(rgb(colors[index]), class_names[index]) for index in present]
    if (target == ignore_index).any():
        entries.append(LegendEntry((0, 0, 0), "ignored"))
    errors = [LegendEntry(ERROR_COLORS[code], ERROR_NAMES[code]) for code in (1, 3, 2)]
    named = ", ".join(class_names[index] for index in classes)
    size = text_size(row.shape[1])
    parts = [text_line(caption, row.shape[1], size=size)] if caption else []
    parts += [headings(row.shape[1], size=size), row]
    parts.append(legend(entries, row.shape[1], title="classes:", size=size))
    parts.append(legend(errors, row.shape[1], title=f"error, of {shorten(named, 60)}:", size=size))
    return np.concatenate([*parts, blank(GAP, row.shape[1])])


def legend(entries: Sequence[LegendEntry], width: int, *, title: str = "", size: int = 14) -> Picture:
    """Return swatches with their names in as many lines as they need, uint8 [h, width, 3].

    Names are shortened; beyond 30 entries the number of the others is told.
    """
    shown = [(entry.color, shorten(entry.name)) for entry in entries[:MAX_LEGEND]]
    items: list[tuple[tuple[int, int, int] | None, str]] = [(None, title)] if title else []
    items += shown
    if len(entries) > MAX_LEGEND:
        items.append((None, f"and {len(entries) - MAX_LEGEND} more"))
    step = size + GAP
    places, left, top = [], GAP, GAP // 2
    for color, name in items:
        item_width = text_width(name, size) + (size + 4 if color is not None else 0)
        if left > GAP and left + item_width > width - GAP:
            left, top = GAP, top + step
        places.append((left, top))
        left += item_width + 2 * GAP
    canvas = Image.fromarray(blank(top + step, width))
    draw = ImageDraw.Draw(canvas)
    for (color, name), (x, y) in zip(items, places, strict=True):
        if color is not None:
            draw.rectangle((x, y + 1, x + size, y + 1 + size), fill=color, outline=SWATCH_EDGE)
            x += size + 4
        draw.text((x, y), name, fill=INK, font=font(size))
    return np.asarray(canvas)


def fit(image: Picture, shape: tuple[int, ...]) -> Picture:
    """Return the picture at the size of `shape` [h, w]."""
    if image.shape[:2] == shape[:2]:
        return image
    smaller = shape[0] * shape[1] < image.shape[0] * image.shape[1]
    resized = cv2.resize(image, (shape[1], shape[0]), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    return np.asarray(resized, dtype=np.uint8)


def rgb(color: Picture) -> tuple[int, int, int]:
    """Return a colour as plain numbers."""
    return int(color[0]), int(color[1]), int(color[2])


def blank(height: int, width: int) -> Picture:
    """Return an empty part of a panel."""
    return np.full((height, width, 3), BACKGROUND, dtype=np.uint8)


def tile_row(tiles: Sequence[Picture]) -> Picture:
    """Return pictures of one size side by side, with gaps around each."""
    between = blank(tiles[0].shape[0], GAP)
    pieces = [piece for tile in tiles for piece in (between, tile)]
    return np.concatenate([*pieces, between], axis=1)


def text_size(width: int) -> int:
    """Return the height of the text in a panel of this width, in pixels."""
    return max(13, min(40, width // 95))


def text_line(text: str, width: int, *, size: int) -> Picture:
    """Return one line of text, cut where it does not fit."""
    canvas = Image.fromarray(blank(size + GAP, width))
    cut = shorten_to_width(text, size, width - 2 * GAP)
    ImageDraw.Draw(canvas).text((GAP, GAP // 2), cut, fill=INK, font=font(size))
    return np.asarray(canvas)


def headings(width: int, *, size: int) -> Picture:
    """Return the line above the tiles."""
    canvas = Image.fromarray(blank(size + GAP, width))
    draw = ImageDraw.Draw(canvas)
    step = (width - GAP) // len(HEADINGS)
    for position, heading in enumerate(HEADINGS):
        draw.text((GAP + position * step, GAP // 2), heading, fill=SWATCH_EDGE, font=font(size))
    return np.asarray(canvas)
