"""The layouts of paired folders: `folders`, `ade20k` and `cityscapes`."""

from __future__ import annotations

from pathlib import Path

from segtrain.config.data import DataConfig
from segtrain.data.formats.base import Layout, Listing, by_stem, pair_by_stem, require_folder, suffixes
from segtrain.data.formats.readers import file_masks
from segtrain.errors import DataError

PART = "{split}"
CITY_IMAGES = "leftImg8bit"
CITY_MASKS = {"ids": "labelIds", "train_ids": "labelTrainIds"}


def _find_pairs(data: DataConfig, root: Path, split: str) -> Listing:
    """images/<split>/a/b.jpg goes with masks/<split>/a/b.png, whatever the suffixes."""
    keys = tuple(f"data.root / data.{key} / data.splits.{split}" for key in ("images", "masks"))
    part = data.splits[split]
    folders = (root / split_folder(data.images, part), root / split_folder(data.masks, part))
    return _pair(split, folders, keys=keys, mask_end=data.mask_end)


def _find_ade20k(data: DataConfig, root: Path, split: str) -> Listing:
    """images/<split>/a.jpg goes with annotations/<split>/a.png."""
    keys = tuple(f"data.root / {name} / data.splits.{split}, as ADE20K has it" for name in ("images", "annotations"))
    part = data.splits[split]
    return _pair(split, (root / "images" / part, root / "annotations" / part), keys=keys)


def split_folder(place: str, part: str) -> str:
    """The folder of a split, relative to the root: below `place`, or where that says {split}."""
    return place.replace(PART, part) if PART in place else f"{place}/{part}"


def _pair(split: str, folders: tuple[Path, Path], *, keys: tuple[str, ...], mask_end: str = "") -> Listing:
    image_folder, mask_folder = folders
    for folder, key in zip((image_folder, mask_folder), keys, strict=True):
        require_folder(folder, split=split, keys=key)
    images = by_stem(image_folder)
    if image_folder == mask_folder and not mask_end:
        raise DataError(f"split {split!r}: {image_folder} holds images and masks: data.mask_end tells them apart")
    if image_folder == mask_folder:
        images = {name: paths for name, paths in images.items() if not name.endswith(mask_end)}
    if not images:
        raise DataError(f"split {split!r}: no images in {image_folder}; looked for {suffixes()}")
    masks, others = _without_end(by_stem(mask_folder), mask_end), suffixes(without=".png")
    return pair_by_stem(images, masks, expected=lambda name: f"{mask_folder / name}{mask_end}.png (or {others})")


def _find_cityscapes(data: DataConfig, root: Path, split: str) -> Listing:
    """leftImg8bit/<split>/<city>/a_leftImg8bit.png goes with gtFine/<split>/<city>/a_gtFine_labelIds.png."""
    part, annotations = data.splits[split], data.cityscapes.annotations
    image_folder, mask_folder = root / CITY_IMAGES / part, root / annotations / part
    for folder in (image_folder, mask_folder):
        require_folder(folder, split=split, keys=f"data.root / .. / data.splits.{split}, as Cityscapes has it")
    mask_end = f"_{annotations}_{CITY_MASKS[data.cityscapes.labels]}"
    images = _without_end(by_stem(image_folder), f"_{CITY_IMAGES}")
    if not images:
        raise DataError(f"split {split!r}: no images in {image_folder}; looked for *_{CITY_IMAGES}.png")
    masks = _without_end(by_stem(mask_folder), mask_end)
    return pair_by_stem(images, masks, expected=lambda name: f"{mask_folder / name}{mask_end}.png")


def _without_end(files: dict[str, list[Path]], end: str) -> dict[str, list[Path]]:
    """Those files whose stems end so, by the stems without that end."""
    return {name.removesuffix(end): paths for name, paths in files.items() if name.endswith(end)}


def _exists(data: DataConfig, root: Path, split: str) -> bool:
    return (root / split_folder(data.images, data.splits[split])).exists()


def _exists_in_cityscapes(data: DataConfig, root: Path, split: str) -> bool:
    return (root / CITY_IMAGES / data.splits[split]).exists()


FOLDERS = Layout(_find_pairs, _exists, file_masks)
ADE20K = Layout(_find_ade20k, _exists, file_masks)
CITYSCAPES = Layout(_find_cityscapes, _exists_in_cityscapes, file_masks)
