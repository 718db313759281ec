"""How one scene of the generated set is drawn: a welded plate on a workbench, its defects and their look-alikes."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from segtrain.config.data import ClassConfig

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]

HEIGHT, WIDTH = 96, 128
IGNORE = 255
CLASSES = (
    ClassConfig(name="background", color=(52, 58, 70)),
    ClassConfig(name="plate", color=(150, 170, 190)),
    ClassConfig(name="weld", color=(70, 120, 200)),
    ClassConfig(name="stain", color=(214, 140, 40)),
    ClassConfig(name="crack", color=(220, 50, 60)),
    ClassConfig(name="pinhole", color=(250, 230, 60)),
)
BACKGROUND, PLATE, WELD, STAIN, CRACK, PINHOLE = range(len(CLASSES))

# Scenes are drawn at twice their size and then averaged down, which gives soft edges as a lens does.
_SCALE = 2
_CANVAS = (HEIGHT * _SCALE, WIDTH * _SCALE)
_LETTERS = "ABCDEFHKLMPRTX"
_BENCH_COLOURS = np.array([[0.20, 0.22, 0.25], [0.30, 0.24, 0.18], [0.17, 0.24, 0.22], [0.27, 0.27, 0.26]], np.float32)
_HEAT_TINT = np.array([-0.55, -0.25, 0.55], np.float32)
_RUST = np.array([0.50, 0.30, 0.17], np.float32)


class Layout(NamedTuple):
    """Where things lie: coordinates along (u) and across (v) the weld, and the two large regions; all [H, W]."""

    u: FloatArray
    v: FloatArray
    plate: BoolArray
    weld: BoolArray


def draw_scene(rng: np.random.Generator) -> tuple[ByteArray, ByteArray]:
    """Draw one scene; everything in it follows from `rng`.

    Returns:
        image uint8 [HEIGHT, WIDTH, 3] RGB and mask uint8 [HEIGHT, WIDTH] of class numbers and IGNORE.
    """
    layout = _place(rng)
    image = _paint_surfaces(rng, layout)
    _draw_look_alikes(rng, image, layout)
    defects = _draw_defects(rng, image, layout)
    mask = _label(layout, defects)
    picture = _photograph(rng, image)
    if rng.random() < 0.25:
        _stamp_caption(rng, picture, mask)
    return picture, mask


def _clouds(rng: np.random.Generator, cell_v: float, cell_u: float | None = None) -> FloatArray:
    """Smooth noise [H, W] of unit variance at the points of a random grid of cells of that size in pixels."""
    rows = max(2, round(_CANVAS[0] / cell_v) + 1)
    columns = max(2, round(_CANVAS[1] / (cell_u or cell_v)) + 1)
    grid = rng.standard_normal((rows, columns), dtype=np.float32)
    return np.asarray(cv2.resize(grid, _CANVAS[::-1], interpolation=cv2.INTER_CUBIC), np.float32)


def _grid() -> tuple[FloatArray, FloatArray]:
    """Rows y [H, 1] and columns x [1, W] of the canvas."""
    y, x = np.ogrid[0 : _CANVAS[0], 0 : _CANVAS[1]]
    return y.astype(np.float32), x.astype(np.float32)


def _place(rng: np.random.Generator) -> Layout:
    height, width = _CANVAS
    y, x = _grid()
    angle = rng.uniform(-0.5, 0.5)
    x, y = x - width * rng.uniform(0.42, 0.58), y - height * rng.uniform(0.42, 0.58)
    u = (math.cos(angle) * x + math.sin(angle) * y).astype(np.float32)
    v = math.cos(angle) * y - math.sin(angle) * x
    half_length, half_width = width * rng.uniform(0.36, 0.52), height * rng.uniform(0.3, 0.42)
    # A rounded rectangle: all points that are close to a smaller one.
    corner = 10.0
    over_u = np.maximum(np.abs(u) - (half_length - corner), 0)
    over_v = np.maximum(np.abs(v) - (half_width - corner), 0)
    plate = over_u * over_u + over_v * over_v < corner * corner
    wave = rng.uniform(1, 4) * np.sin(u / rng.uniform(22, 50) + rng.uniform(0, 6.3))
    v = (v - rng.uniform(-0.4, 0.4) * half_width - wave).astype(np.float32)
    half_bead = rng.uniform(11, 17) + rng.uniform(0, 1.5) * np.sin(u / rng.uniform(5, 9))
    return Layout(u, v, plate, plate & (np.abs(v) < half_bead))


def _paint_surfaces(rng: np.random.Generator, layout: Layout) -> FloatArray:
    """Bench, plate with its shadow, and weld bead; float32 [H, W, 3] about 0 to 1."""
    u, v, plate, weld = layout
    grain = 1 + 0.10 * _clouds(rng, 3, rng.uniform(3, 24)) + 0.10 * _clouds(rng, 24)
    shadow = cv2.GaussianBlur(np.roll(plate, (7, 5), axis=(0, 1)).astype(np.float32), (0, 0), 5)
    bench = _BENCH_COLOURS[rng.integers(len(_BENCH_COLOURS))] * rng.uniform(0.75, 1.3)
    shade = grain * (1 - 0.55 * shadow)
    image = cv2.merge([shade * value for value in bench])

    brushed = cv2.remap(_clouds(rng, 2, 60), (u + 128) % 255, (v + 96) % 191, cv2.INTER_LINEAR)
    tone = 1 + 0.055 * brushed + 0.05 * _clouds(rng, 40) + 0.10 * np.sin(v / 60 + rng.uniform(0, 6.3))
    metal = rng.uniform(0.48, 0.68) * (1 + rng.uniform(-0.04, 0.04, 3).astype(np.float32))
    # Heat leaves straw and blue tints beside the bead; they belong to the plate.
    heat = _bell((np.abs(v) - 14) / rng.uniform(7, 14)) * rng.uniform(0.0, 0.20)
    surface = cv2.merge([tone * value * (1 + heat * tint) for value, tint in zip(metal, _HEAT_TINT, strict=True)])
    np.copyto(image, surface, where=plate[..., None])
    edge = plate & (cv2.erode(plate.view(np.uint8), np.ones((5, 5), np.uint8)) == 0)
    image[edge] *= 1.18
    np.copyto(image, _bead_brightness(rng, u, v)[..., None], where=weld[..., None])
    return np.asarray(image, np.float32)


def _bell(x: npt.NDArray[np.floating]) -> FloatArray:
    """exp(−x²), kept away from the denormal numbers, which are very slow to multiply."""
    return np.asarray(np.exp(-np.minimum(x * x, 25)), np.float32)


def _bead_brightness(rng: np.random.Generator, u: FloatArray, v: FloatArray) -> FloatArray:
    """The rippled bead that a welder leaves, lit from above; float32 [H, W]."""
    height = np.sqrt(np.clip(1 - (v / 17) ** 2, 0.02, 1))
    ripple = np.sin(u / rng.uniform(1.9, 2.7) + (v / rng.uniform(5, 8)) ** 2)
    bead = (0.25 + 0.33 * height + 0.055 * ripple + 0.03 * _clouds(rng, 5)) * rng.uniform(0.85, 1.25)
    gloss = rng.uniform(0.05, 0.2) * _bell((v + rng.uniform(2, 6)) / math.sqrt(12))
    return np.asarray(bead + gloss, np.float32)


def _point_in(rng: np.random.Generator, region: BoolArray) -> tuple[int, int]:
    """A random point (x, y) of the region; the centre of the canvas when it is empty."""
    flat = np.flatnonzero(region)
    if flat.size == 0:
        return _CANVAS[1] // 2, _CANVAS[0] // 2
    y, x = divmod(int(flat[rng.integers(flat.size)]), _CANVAS[1])
    return x, y


def _coverage(points: FloatArray, width: int) -> FloatArray:
    """A poly-line of that width in pixels, drawn with soft edges: float32 [H, W] from 0 to 1."""
    layer = np.zeros(_CANVAS, np.uint8)
    cv2.polylines(layer, [np.round(points * 8).astype(np.int32)], False, 255, width, cv2.LINE_AA, 3)
    return np.asarray(layer / np.float32(255), np.float32)


def _wavy_line(rng: np.random.Generator, start: tuple[int, int], length: float, heading: float) -> FloatArray:
    """Points [K, 2] of a line that wanders as a crack does."""
    steps = max(4, round(length / 5))
    turn = np.cumsum(rng.normal(0, 0.22, steps)) + rng.normal(0, 0.45, steps)
    path = np.cumsum(np.stack([np.cos(heading + turn), np.sin(heading + turn)], axis=1) * 5, axis=0)
    return np.asarray(np.array(start) + path - path.mean(axis=0), np.float32)


def _darken(image: FloatArray, coverage: FloatArray, strength: float) -> None:
    image *= (1 - strength * coverage)[..., None]


def _draw_look_alikes(rng: np.random.Generator, image: FloatArray, layout: Layout) -> None:
    """Things that are no defects: bench lines, tool marks, smudges, rivets, engravings, spatter and dust."""
    everywhere = np.ones(_CANVAS, bool)
    for _ in range(rng.integers(0, 4)):  # cracks of the bench, not of the plate
        line = _wavy_line(rng, _point_in(rng, ~layout.plate), rng.uniform(40, 110), rng.uniform(0, 6.3))
        _darken(image, _coverage(line, int(rng.integers(2, 5))) * ~layout.plate, rng.uniform(0.4, 0.7))
    for _ in range(rng.integers(0, 4)):  # straight tool marks
        x, y = _point_in(rng, layout.plate)
        heading, reach = rng.uniform(0, 3.2), rng.uniform(15, 60)
        ends = np.array([[x, y], [x + reach * math.cos(heading), y + reach * math.sin(heading)]], np.float32)
        _darken(image, _coverage(ends, int(rng.integers(1, 4))) * layout.plate, rng.uniform(-0.3, 0.45))
    if rng.random() < 0.4:
        _darken(image, _blob(rng, _point_in(rng, layout.plate), rng.uniform(10, 24)) * layout.plate, 0.25)
    if rng.random() < 0.6:
        _draw_rivets(rng, image, layout)
    if rng.random() < 0.35:
        x, y = _point_in(rng, layout.plate & (np.abs(layout.v) > 24))
        text = f"{_LETTERS[rng.integers(len(_LETTERS))]}{rng.integers(10, 99)}"
        layer = np.zeros(_CANVAS, np.uint8)
        cv2.putText(layer, text, (x - 20, y + 6), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 2, cv2.LINE_AA)
        engraved = np.asarray(layer / np.float32(255) * (layout.plate & ~layout.weld), np.float32)
        _darken(image, engraved, rng.uniform(0.3, 0.6))
    for _ in range(rng.integers(0, 9)):  # spatter: bright beads beside the weld
        x, y = _point_in(rng, layout.plate & (np.abs(layout.v) < 44))
        _draw_spot(image, x, y, rng.uniform(1.5, 3.5), 0.5, rim=-0.3)
    for _ in range(rng.integers(4, 16)):  # dust: as large as a pinhole, but without its bright rim
        x, y = _point_in(rng, everywhere if rng.random() < 0.7 else layout.weld)
        _draw_spot(image, x, y, rng.uniform(1.6, 3.6), rng.uniform(-0.75, -0.35), rim=0.0)


def _draw_spot(image: FloatArray, x: int, y: int, radius: float, gain: float, *, rim: float) -> BoolArray:
    """Multiply a round spot by 1 + gain and the ring around it by 1 + rim; returns the spot, bool [H, W]."""
    reach = int(3 * radius) + 2
    rows = slice(max(y - reach, 0), y + reach + 1)
    columns = slice(max(x - reach, 0), x + reach + 1)
    patch = image[rows, columns]
    distance = np.hypot(
        *np.ogrid[
            rows.start - y : rows.start - y + patch.shape[0], columns.start - x : columns.start - x + patch.shape[1]
        ]
    )
    inside = np.clip(radius + 0.5 - distance, 0, 1)
    ring = np.exp(-(((distance - radius - 1.2) / 1.0) ** 2)) * (1 - inside)
    patch *= (1 + gain * inside + rim * ring)[..., None].astype(np.float32)
    spot = np.zeros(_CANVAS, bool)
    spot[rows, columns] = inside > 0.5
    return spot


def _draw_rivets(rng: np.random.Generator, image: FloatArray, layout: Layout) -> None:
    radius = rng.uniform(5, 8)
    room = layout.plate & (np.abs(layout.v) > 30)
    for _ in range(rng.integers(1, 5)):
        x, y = _point_in(rng, room)
        if room[y, x]:
            _draw_spot(image, x + 1, y + 1, radius + 1.5, -0.45, rim=0.0)
            _draw_spot(image, x, y, radius, 0.75, rim=0.0)
            _draw_spot(image, x - 2, y - 2, radius * 0.35, 0.3, rim=0.0)


def _blob(rng: np.random.Generator, centre: tuple[int, int], radius: float) -> FloatArray:
    """A patch with a ragged outline: float32 [H, W] from 0 to 1."""
    y, x = _grid()
    squeeze, angle = rng.uniform(0.6, 1.0), rng.uniform(0, 3.2)
    x, y = x - centre[0], y - centre[1]
    along = math.cos(angle) * x + math.sin(angle) * y
    across = (math.cos(angle) * y - math.sin(angle) * x) / squeeze
    level = 1 - np.sqrt(along * along + across * across) / radius + 0.22 * _clouds(rng, 9)
    return np.asarray(np.clip(level * 4 + 0.5, 0, 1), np.float32)


def _draw_defects(rng: np.random.Generator, image: FloatArray, layout: Layout) -> dict[int, FloatArray]:
    """Draw the defects of the scene, in some scenes none; returns their coverage by class, float32 [H, W]."""
    defects = {number: np.zeros(_CANVAS, np.float32) for number in (STAIN, CRACK, PINHOLE)}
    if rng.random() < 0.15:
        return defects
    if rng.random() < 0.62:
        stain = _blob(rng, _point_in(rng, layout.plate & ~layout.weld), rng.uniform(12, 26)) * layout.plate
        rust = (1 + 0.2 * _clouds(rng, 4))[..., None] * _RUST
        image += (rust - image) * (stain * rng.uniform(0.35, 0.75))[..., None]
        defects[STAIN] = stain
    for _ in range(rng.choice(4, p=[0.55, 0.31, 0.11, 0.03])):
        start = _point_in(rng, layout.plate & (np.abs(layout.v) < 26))
        line = _wavy_line(rng, start, rng.uniform(38, 88), rng.uniform(0, 6.3))
        crack = _coverage(line, int(rng.integers(2, 4))) * layout.plate
        _darken(image, crack, rng.uniform(0.55, 0.8))
        defects[CRACK] = np.maximum(defects[CRACK], crack)
    if rng.random() < 0.45:
        inner = cv2.erode(layout.weld.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
        for _ in range(rng.integers(1, 5)):
            x, y = _point_in(rng, inner)
            spot = _draw_spot(image, x, y, rng.uniform(2.0, 3.1), rng.uniform(-0.8, -0.5), rim=rng.uniform(0.3, 0.6))
            defects[PINHOLE] = np.maximum(defects[PINHOLE], spot.astype(np.float32))
    return defects


def _shrink(coverage: npt.NDArray[np.generic]) -> FloatArray:
    """Average the canvas down to the size of the image."""
    return np.asarray(
        cv2.resize(coverage.astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), np.float32
    )


def _label(layout: Layout, defects: dict[int, FloatArray]) -> ByteArray:
    mask = np.full((HEIGHT, WIDTH), BACKGROUND, np.uint8)
    for number, region in ((PLATE, layout.plate), (WELD, layout.weld)):
        coverage = _shrink(region)
        mask[coverage >= 0.5] = number
        # Pixels that two surfaces share belong to neither.
        mask[(coverage > 0.05) & (coverage < 0.95)] = IGNORE
    for number, area in defects.items():
        mask[_shrink(area) >= 0.4] = number
    return mask


def _photograph(rng: np.random.Generator, image: FloatArray) -> ByteArray:
    """Uneven light, exposure, white balance, lens blur and sensor noise; uint8 [HEIGHT, WIDTH, 3]."""
    picture = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    y = np.linspace(-1, 1, HEIGHT, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, WIDTH, dtype=np.float32)
    direction, slope, vignette = rng.uniform(0, 6.3), rng.uniform(0, 0.35), rng.uniform(0, 0.2)
    light = 1 + slope * (x * math.cos(direction) + y * math.sin(direction)) - vignette * (x * x + y * y)
    tint = rng.uniform(0.75, 1.3) * (1 + rng.uniform(-0.07, 0.07, 3))
    picture = picture * (light[..., None] * tint.astype(np.float32))
    blur = rng.uniform(0.0, 0.75)
    if blur > 0.25:
        picture = cv2.GaussianBlur(picture, (0, 0), blur)
    picture = picture + rng.uniform(0.008, 0.03) * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.asarray(np.clip(picture * 255 + 0.5, 0, 255), np.uint8)


def _stamp_caption(rng: np.random.Generator, image: ByteArray, mask: ByteArray) -> None:
    """The camera's caption in the lower left corner: burnt into the picture, and ignored in the mask."""
    text = f"CAM{rng.integers(1, 4)} {rng.integers(0, 24):02d}:{rng.integers(0, 60):02d}"
    box = (slice(HEIGHT - 10, HEIGHT), slice(0, 50))
    patch = np.zeros((10, 50, 3), np.uint8)
    cv2.putText(patch, text, (2, 8), cv2.FONT_HERSHEY_PLAIN, 0.55, (235, 235, 235), 1, cv2.LINE_AA)
    image[box] = patch
    mask[box] = IGNORE
