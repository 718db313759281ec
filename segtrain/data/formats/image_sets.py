"""The layouts of Pascal VOC and CVAT's "Segmentation mask 1.1": lists of stems, folders of images and of masks."""

from __future__ import annotations

from pathlib import Path

from segtrain.config.data import DataConfig
from segtrain.data.formats.base import (
    Layout,
    Listing,
    MaskReader,
    by_stem,
    pair_by_stem,
    read_stems,
    read_text,
    require_folder,
    suffixes,
)
from segtrain.data.formats.labels import NameRules
from segtrain.data.formats.readers import ColorMasks, file_masks
from segtrain.data.problems import Kind, Problem
from segtrain.errors import DataError, listing

IMAGE_SETS = Path("ImageSets/Segmentation")
VOC_IMAGES = "JPEGImages"
CVAT_MASKS = "SegmentationClass"
LABEL_MAP = "labelmap.txt"


def _find_voc(data: DataConfig, root: Path, split: str) -> Listing:
    return _find(data, root, split, images=VOC_IMAGES, masks=data.voc.masks)


def _find_cvat(data: DataConfig, root: Path, split: str) -> Listing:
    return _find(data, root, split, images=data.cvat.images, masks=CVAT_MASKS)


def _find(data: DataConfig, root: Path, split: str, *, images: str, masks: str) -> Listing:
    """The stems of ImageSets/Segmentation/<split>.txt, each with its image and its mask."""
    stems = read_stems(_list_of(data, root, split), split=split)
    for folder in (images, masks):
        require_folder(root / folder, split=split, keys="data.root")
    found = by_stem(root / images)
    absent = [stem for stem in stems if stem not in found]
    expected = f"(or {suffixes(without='.png')})"
    pairs = pair_by_stem(
        {stem: found[stem] for stem in stems if stem in found},
        by_stem(root / masks),
        expected=lambda name: f"{root / masks / name}.png {expected}",
    )
    missing = [Problem(root / images / f"{stem}.jpg", f"no such image {expected}", Kind.MISSING) for stem in absent]
    return Listing(pairs.samples, [*missing, *pairs.problems])  # masks of other splits are no unused ones


def _list_of(data: DataConfig, root: Path, split: str) -> Path:
    return root / IMAGE_SETS / f"{data.splits[split].removesuffix('.txt')}.txt"


def _exists(data: DataConfig, root: Path, split: str) -> bool:
    return _list_of(data, root, split).exists()


def read_label_map(path: Path) -> dict[tuple[int, int, int], str]:
    """The names by their colours in a labelmap.txt of CVAT; raises DataError for lines that do not fit."""
    names: dict[tuple[int, int, int], str] = {}
    malformed = []
    for number, line in enumerate(read_text(path, what="the colours of the labels").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, _, rest = text.partition(":")
        color = _color(rest.partition(":")[0])
        if not name or color is None:
            malformed.append(f"line {number}: {text!r}")
        elif names.setdefault(color, name) != name:
            malformed.append(f"line {number}: {name} has the colour of {names[color]}")
    if malformed or not names:
        head = f"{path}: expected a name and a colour in each line, such as road:128,0,0:: ; lines that do not fit:"
        raise DataError(listing(f"{head} {len(malformed)}", malformed))
    return names


def _color(text: str) -> tuple[int, int, int] | None:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(part.isascii() and part.isdecimal() and int(part) <= 255 for part in parts):
        return None
    red, green, blue = map(int, parts)
    return red, green, blue


def _cvat_masks(data: DataConfig) -> MaskReader:
    path = Path(data.root).expanduser() / LABEL_MAP
    names = read_label_map(path)
    values = NameRules.from_config(data).values(sorted(set(names.values())), source=path)
    return ColorMasks(data.max_pixels, tuple((color, values[name]) for color, name in sorted(names.items())))


VOC = Layout(_find_voc, _exists, file_masks)
CVAT = Layout(_find_cvat, _exists, _cvat_masks)
