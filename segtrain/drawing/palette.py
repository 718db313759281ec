"""Colours of classes: as given, the others distinct, the first of them safe for colour-blind readers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from segtrain.config.data import DataConfig

Color = tuple[int, int, int]

# A quiet gray for class 0, which is most often the background, then the set of Okabe and Ito
# (https://jfly.uni-koeln.de/color/), without its black: black is what ignored pixels show.
FIRST_COLORS: tuple[Color, ...] = (
    (128, 128, 128),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (213, 94, 0),
    (204, 121, 167),
    (240, 228, 66),
    (0, 114, 178),
)
LIGHTNESS_WEIGHT = 1.5
DARKEST = 0.45


def palette(num_classes: int, colors: Sequence[Color | None] | None = None) -> npt.NDArray[np.uint8]:
    """Return one RGB colour for each class, uint8 [num_classes, 3], always the same for the same arguments.

    colors: wished colours, None where there is no wish. The others take the first colours that lie far
    enough from every colour in use, then those that lie farthest (in Oklab, lightness stressed, since
    that is what colour-blind readers keep). All of those are distinct, and none is close to black.
    Raises ValueError for more colours than classes.
    """
    wished = list(colors) if colors is not None else []
    if len(wished) > num_classes:
        raise ValueError(f"{len(wished)} colours for {num_classes} classes")
    wished += [None] * (num_classes - len(wished))
    taken = [color for color in wished if color is not None]
    missing = num_classes - len(taken)
    fresh = iter(_distinct(missing, taken) if missing else [])
    chosen = [next(fresh) if color is None else color for color in wished]
    return np.array(chosen, dtype=np.uint8).reshape(num_classes, 3)


def class_palette(data: DataConfig) -> npt.NDArray[np.uint8]:
    """Return the colours of the classes of a data section, uint8 [C, 3].

    The gray that class 0 gets as a background is passed over where classes are a yes or no each: none is one there.
    """
    colors = [entry.color for entry in data.classes]
    if not data.multi_label:
        return palette(len(colors), colors)
    return palette(len(colors) + 1, [FIRST_COLORS[0], *colors])[1:]


def _distinct(count: int, taken: Sequence[Color]) -> list[Color]:
    """Return `count` colours: the first ones not close to a taken one, then the farthest of a grid."""
    chosen: list[Color] = []
    used = _oklab(np.array(taken, dtype=np.float64).reshape(-1, 3))
    for color in FIRST_COLORS:
        place = _oklab(np.array([color], dtype=np.float64))
        if len(chosen) < count and (not len(used) or _distances(used, place).min() > 0.1):
            chosen.append(color)
    if len(chosen) == count:
        return chosen
    grid = _grid(count + len(taken))
    places = _oklab(grid)
    nearest = np.full(len(grid), np.inf)
    for place in np.concatenate([used, _oklab(np.array(chosen, dtype=np.float64).reshape(-1, 3))]):
        nearest = np.minimum(nearest, _distances(places, place[None]))
    while len(chosen) < count:
        best = int(nearest.argmax())
        chosen.append((int(grid[best, 0]), int(grid[best, 1]), int(grid[best, 2])))
        nearest = np.minimum(nearest, _distances(places, places[best : best + 1]))
    return chosen


def _grid(needed: int) -> npt.NDArray[np.float64]:
    """Return RGB colours on a regular grid, dark ones left out, several times as many as needed."""
    steps = max(12, int(np.ceil((8 * needed) ** (1 / 3))))
    levels = np.round(np.linspace(0, 255, steps))
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    return grid[_oklab(grid)[:, 0] > DARKEST * LIGHTNESS_WEIGHT]


def _distances(places: npt.NDArray[np.float64], place: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    distances: npt.NDArray[np.float64] = np.sqrt(((places - place) ** 2).sum(axis=1))
    return distances


def _oklab(rgb: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return Oklab coordinates of RGB 0..255 [N, 3], lightness stressed (Ottosson 2020, bottosson.github.io)."""
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    lab: npt.NDArray[np.float64] = np.cbrt(linear @ np.array(to_cones).T) @ np.array(to_lab).T
    lab[:, 0] *= LIGHTNESS_WEIGHT
    return lab
