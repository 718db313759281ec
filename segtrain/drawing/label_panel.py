"""Panels of classes that may overlap: a row for each class, so that none hides another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from segtrain.drawing.maps import (
    ERROR_COLORS,
    ERROR_NAMES,
    ClassMap,
    Picture,
    error_codes,
    overlay_labels,
    paint_errors,
    shrink_classes,
    shrink_codes,
    to_display,
)
from segtrain.drawing.panel import (
    GAP,
    LARGEST_SIDE,
    SMALLEST_SIDE,
    LegendEntry,
    blank,
    fit,
    headings,
    legend,
    panel,
    rgb,
    text_line,
    text_size,
    tile_row,
)

MAX_ROWS = 8
ALPHA = 0.65


def panel_of(image: npt.NDArray[Any], target: ClassMap, prediction: ClassMap, **options: Any) -> Picture:
    """Return the panel that fits the target: `panel` for class maps [h, w], `label_panel` for labels [K, h, w]."""
    return (panel if target.ndim == 2 else label_panel)(image, target, prediction, **options)


def label_panel(
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
    """Return image | target | prediction | error of each class, row by row, as one uint8 picture [H, W, 3].

    image: [H, W, C] of any type; target, prediction: labels [K, h, w] of 0, 1 and ignore_index, of one size: the image
    is resized to it. classes: the named classes (numbers); those that the target holds or that were predicted get a
    row, eight at most, and the first of them where there is none. Small pictures are enlarged and large ones shrunk by
    whole factors; classes and errors survive shrinking.
    """
    image = fit(to_display(image), target.shape[1:])
    factor = -(-max(target.shape[1:]) // LARGEST_SIDE)
    seen = [c for c in classes if (target[c] == 1).any() or (prediction[c] == 1).any()] or list(classes[:1])
    rows = [
        _row(image, target[c], prediction[c], color=colors[c], factor=factor, ignore_index=ignore_index)
        for c in seen[:MAX_ROWS]
    ]
    width = rows[0].shape[1]
    size = text_size(width)
    parts = [text_line(caption, width, size=size)] if caption else []
    parts.append(headings(width, size=size))
    for c, row in zip(seen, rows, strict=False):
        parts += [legend([LegendEntry(rgb(colors[c]), class_names[c])], width, size=size), row]
    if len(seen) > MAX_ROWS:
        parts.append(text_line(f"and {len(seen) - MAX_ROWS} classes more", width, size=size))
    errors = [LegendEntry(ERROR_COLORS[code], ERROR_NAMES[code]) for code in (1, 3, 2)]
    if (target[list(classes)] == ignore_index).any():
        errors.append(LegendEntry((0, 0, 0), "ignored"))
    parts.append(legend(errors, width, title="error, of each class:", size=size))
    return np.concatenate([*parts, blank(GAP, width)])


def _row(
    image: Picture, target: ClassMap, prediction: ClassMap, *, color: Picture, factor: int, ignore_index: int
) -> Picture:
    """Return the four tiles of one class, its target and prediction [h, w]."""
    codes = error_codes(target, prediction, classes=[1], ignore_index=ignore_index)
    if factor > 1:
        target, prediction = (shrink_classes(labels, factor, keep=[1]) for labels in (target, prediction))
        codes = shrink_codes(codes, factor)
        image = fit(image, codes.shape)
    painted = [
        overlay_labels(image, labels[None], colors=color[None], classes=[0], alpha=ALPHA)
        for labels in (target, prediction)
    ]
    painted[0][target == ignore_index] = 0
    tiles = [image, *painted, paint_errors(image, codes)]
    scale = max(1, -(-SMALLEST_SIDE // max(codes.shape)))
    return tile_row([tile.repeat(scale, axis=0).repeat(scale, axis=1) for tile in tiles])
