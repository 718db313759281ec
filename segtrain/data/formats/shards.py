"""The layout `shards`: samples in tar files as webdataset writes them, local or behind a URL."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import fields
from functools import partial
from itertools import product
from pathlib import Path

from segtrain.config.data import DataConfig
from segtrain.config.layouts import ShardsConfig
from segtrain.data.formats.base import Layout, Listing, Sample
from segtrain.data.formats.readers import file_masks
from segtrain.data.headers import SUFFIXES
from segtrain.data.samples import Column, Constant, Samples
from segtrain.data.shard_index import index_key, index_shards, located
from segtrain.data.shards import Members, is_url, remote, retried
from segtrain.data.tar_members import Part
from segtrain.errors import DataError, listing, some

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
WILD = "*?["


def _find(data: DataConfig, root: Path, split: str) -> Listing:
    """The tar files that data.splits names, and in each the files of a key: an image and its mask."""
    if os.name != "posix":
        raise DataError("data.layout: shards reads parts of files as only Unix does; unpack the shards instead")
    locations = _locations(root, data.splits[split])
    if not locations:
        raise DataError(f"split {split!r}: no tar files {_place(root, data.splits[split])} (data.splits.{split})")
    repeated = sorted({location for location in locations if locations.count(location) > 1})
    if repeated:
        raise DataError(listing(f"data.splits.{split} names shards more than once:", repeated))
    choose = partial(choose_pair, shards=data.shards)
    index = index_shards(data, locations, key=index_key(data, split), choose=choose)
    numbers = index.numbers
    columns: dict[str, Column] = {entry.name: Constant(None, len(numbers)) for entry in fields(Sample)}
    columns["name"] = index.names
    columns["image"] = Members(index.shards, numbers, index.images, index.spans[:, :2])
    columns["mask"] = Members(index.shards, numbers, index.masks, index.spans[:, 2:])
    return Listing(Samples(Sample, columns), index.problems)


def _place(root: Path, pattern: str) -> str:
    return pattern if is_url(pattern) else str(root / pattern)


def _locations(root: Path, pattern: str) -> list[str]:
    """The paths under root, or URLs, for which a pattern stands; those of wildcards in the order of their names."""
    found: list[str] = []
    for location in expand_braces(pattern):
        folder = location.endswith("/") if is_url(location) else (root / location).is_dir()
        single = f"{location.rstrip('/')}/*.tar" if folder else location
        if not any(mark in single for mark in WILD):
            found.append(single)
        elif is_url(single):
            found += _matching_urls(single)
        else:
            found += _matching_files(root, Path(single))
    return found


def expand_braces(pattern: str) -> list[str]:
    """The names for which {000..146} (with as many digits) and {a,b} stand, in their order.

    Raises:
        DataError: braces that are neither.
    """
    parts = BRACES.split(pattern)
    choices = [[part] if number % 2 == 0 else _choices(part, pattern) for number, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def _choices(content: str, pattern: str) -> list[str]:
    bounds = RANGE.fullmatch(content)
    if bounds is not None:
        first, last = (int(bound) for bound in bounds.groups())
        width = len(bounds[1]) if bounds[1].startswith("0") else 0
        if first <= last:
            return [f"{number:0{width}}" for number in range(first, last + 1)]
    elif "," in content:
        return content.split(",")
    raise DataError(f"data.splits: {pattern!r}: expected {{000..146}} or {{a,b}}, found {{{content}}}")


def _matching_files(root: Path, pattern: Path) -> list[str]:
    if pattern.is_absolute():
        return sorted(str(path) for path in Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    return sorted(path.relative_to(root).as_posix() for path in root.glob(str(pattern)))


def _matching_urls(pattern: str) -> list[str]:
    files, path = remote(pattern)
    try:
        found: list[str] = retried(lambda: files.glob(path))
    except (OSError, NotImplementedError) as error:
        raise DataError(
            f"data.splits: {pattern} cannot be listed ({error}): name the shards, as {{000..146}}"
        ) from error
    return sorted(files.unstrip_protocol(one) for one in found)


def choose_pair(files: dict[str, Part], *, shards: ShardsConfig) -> tuple[str, str] | str | None:
    """The extensions of image and mask among those of a key; why there are none; None for a key without images.

    Where data.shards does not name them: the mask is mask.*, else png beside an image of another kind.
    """
    pictures = [one for one in files if f".{one.rpartition('.')[2]}" in SUFFIXES]
    if shards.image is not None and shards.mask is not None:
        wanted = {"image": shards.image.lower(), "mask": shards.mask.lower()}
        missing = [f"no {kind} .{extension}" for kind, extension in wanted.items() if extension not in files]
        return _some_missing(missing, pictures) if missing else (wanted["image"], wanted["mask"])
    if not pictures:
        return None
    masks = _named(pictures, "mask", shards.mask) or ([] if shards.mask else _plain_png(pictures, shards.image))
    images = _named(pictures, "image", shards.image)
    if not images and shards.image is None:
        images = [one for one in pictures if one not in masks]
    for kind, found in (("image", images), ("mask", masks)):
        if not found:
            return f"no {kind}"
        if len(found) > 1:
            told = some([f".{one}" for one in sorted(found)], limit=5)
            return f"which file is the {kind}, {told}? Say so in data.shards.{kind}"
    return images[0], masks[0]


def _some_missing(missing: list[str], pictures: list[str]) -> str | None:
    return " and ".join(missing) if pictures else None


def _named(pictures: Iterable[str], kind: str, extension: str | None) -> list[str]:
    if extension is not None:
        return [one for one in pictures if one == extension.lower()]
    return [one for one in pictures if one.startswith(f"{kind}.")]


def _plain_png(pictures: list[str], image: str | None) -> list[str]:
    return ["png"] if "png" in pictures and len(pictures) > 1 and image != "png" else []


def _exists(data: DataConfig, root: Path, split: str) -> bool:
    locations = _locations(root, data.splits[split])
    first = next(iter(locations), None)
    if first is None or not is_url(first):
        return first is not None and Path(located(root, first)).exists()
    files, path = remote(first)
    return bool(retried(lambda: files.exists(path)))


SHARDS = Layout(_find, _exists, file_masks)
