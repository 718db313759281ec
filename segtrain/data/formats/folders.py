"""The layout `folders`: images/<split> and masks/<split>, paired by what stands before the suffix."""

from __future__ import annotations

from pathlib import Path

from segtrain.config.data import DataConfig
from segtrain.data.formats.base import Layout, Listing, by_stem, pair_by_stem, require_folder, suffixes
from segtrain.data.formats.readers import file_masks
from segtrain.errors import DataError


def _find(data: DataConfig, root: Path, split: str) -> Listing:
    """images/<split>/a/b.jpg goes with masks/<split>/a/b.png, whatever the suffixes."""
    image_folder = root / data.images / data.splits[split]
    mask_folder = root / data.masks / data.splits[split]
    for folder, key in ((image_folder, "images"), (mask_folder, "masks")):
        require_folder(folder, split=split, keys=f"data.root / data.{key} / data.splits.{split}")
    images = by_stem(image_folder)
    if not images:
        raise DataError(f"split {split!r}: no images in {image_folder}; looked for {suffixes()}")
    others = suffixes(without=".png")
    return pair_by_stem(images, by_stem(mask_folder), expected=lambda name: f"{mask_folder / name}.png (or {others})")


def _exists(data: DataConfig, root: Path, split: str) -> bool:
    return (root / data.images / data.splits[split]).exists()


FOLDERS = Layout(_find, _exists, file_masks)
