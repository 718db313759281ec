"""Recognises in which layout a folder keeps images and masks, and what its files say of the classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from segtrain.config.cityscapes import EVALUATED
from segtrain.config.layouts import IGNORE
from segtrain.data.formats.base import image_files
from segtrain.data.formats.coco_index import open_index
from segtrain.data.formats.folders import split_folder
from segtrain.data.formats.image_sets import IMAGE_SETS, LABEL_MAP, read_label_map
from segtrain.errors import DataError

MAX_DEPTH = 3  # archives wrap their contents into folders of their own
MAX_FOLDERS = 2000
IMAGE_NAMES = ("images", "image", "imgs", "img", "photos", "rgb")
MASK_NAMES = ("masks", "mask", "labels", "label", "annotations", "annotation", "gt", "segmentation", "targets")
SPLIT_STARTS = {"train": ("train",), "val": ("val", "valid", "dev"), "test": ("test",)}
ADE_NAMES = "objectInfo150.txt"


@dataclass(frozen=True)
class Recognized:
    """A layout that fits a folder.

    options: keys of the data section besides root, layout, splits and classes. splits: train, val and test where their
    names say so. classes: where the files name them, else None. masks: folders that hold the mask files.
    """

    layout: str
    root: Path
    splits: dict[str, str]
    options: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    masks: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def recognize(folder: Path) -> Recognized | None:
    """Find the layout of a folder, or of one inside it: the outermost that fits, by its folders' and files' names."""
    for root in islice(_folders(folder), MAX_FOLDERS):
        for detect in DETECTORS:
            found = detect(root)
            if found is not None:
                return found
    return None


def _folders(folder: Path) -> Iterator[Path]:
    """The folder and those inside it, outermost first, hidden ones left out."""
    level = [folder]
    for _ in range(MAX_DEPTH + 1):
        yield from level
        level = [child for parent in level for child in _children(parent)]


def _children(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _splits(names: list[str]) -> dict[str, str]:
    """train, val and test, where one of the names stands for them."""
    found = {}
    for split, starts in SPLIT_STARTS.items():
        fitting = [name for name in names if name.lower().startswith(starts)]
        if fitting:
            found[split] = min(fitting, key=len)
    return found


def _cityscapes(root: Path) -> Recognized | None:
    fine = [name for name in ("gtFine", "gtCoarse") if (root / name).is_dir()]
    if not (root / "leftImg8bit").is_dir() or not fine:
        return None
    masks = root / fine[0]
    splits = _splits([child.name for child in _children(root / "leftImg8bit") if (masks / child.name).is_dir()])
    options: dict[str, Any] = {}
    if next(masks.rglob("*_labelTrainIds.png"), None) is not None:
        options["labels"] = "train_ids"
    if fine[0] != "gtFine":
        options["annotations"] = fine[0]
    cityscapes = {"cityscapes": options} if options else {}
    return Recognized(
        "cityscapes", root, splits, cityscapes, EVALUATED, (masks,), ("the 19 classes that are evaluated",)
    )


def _cvat(root: Path) -> Recognized | None:
    if not ((root / LABEL_MAP).is_file() and (root / "SegmentationClass").is_dir() and (root / IMAGE_SETS).is_dir()):
        return None
    names = list(dict.fromkeys(read_label_map(root / LABEL_MAP).values()))
    lists = _lists(root)
    notes = [f"the names of {LABEL_MAP}"]
    if not (root / "JPEGImages").is_dir():
        notes.append(
            "the archive holds no images: put them into JPEGImages, or name their folder in cvat: {images: ...}"
        )
    options: dict[str, Any] = {}
    if "ignored" in names:
        names.remove("ignored")
        options["name_map"] = {"ignored": IGNORE}
    return Recognized(
        "cvat", root, _split_lists(lists), options, tuple(names), (root / "SegmentationClass",), tuple(notes)
    )


def _voc(root: Path) -> Recognized | None:
    if not ((root / "JPEGImages").is_dir() and (root / "SegmentationClass").is_dir() and (root / IMAGE_SETS).is_dir()):
        return None
    return Recognized("voc", root, _split_lists(_lists(root)), masks=(root / "SegmentationClass",))


def _lists(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / IMAGE_SETS).glob("*.txt"))


def _split_lists(names: list[str]) -> dict[str, str]:
    """Of the lists, those whose names say train, val or test; a single list of another name is that of training."""
    return _splits(names) or ({"train": names[0]} if len(names) == 1 else {})


def _ade20k(root: Path) -> Recognized | None:
    if not ((root / "images/training").is_dir() and (root / "annotations/training").is_dir()):
        return None
    splits = _splits([child.name for child in _children(root / "images")])
    return Recognized("ade20k", root, splits, {}, _ade_names(root / ADE_NAMES), (root / "annotations",))


def _ade_names(path: Path) -> tuple[str, ...] | None:
    """The first name of each line of objectInfo150.txt, whose fields are separated by tabs."""
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    names = [line.split("\t")[-1].split(",")[0].strip() for line in lines if "\t" in line]
    return tuple(names) if names and len(set(names)) == len(names) and all(names) else None


def _coco(root: Path) -> Recognized | None:
    """JSON files of regions in the folder or in its annotations; a split's images are where its first image is."""
    files = [*sorted(root.glob("*.json")), *sorted((root / "annotations").glob("*.json"))]
    found: dict[Path, list[str]] = {}
    for path in files:
        try:
            index = open_index(path)
        except DataError:
            continue
        if index.used:
            found[path] = list(dict.fromkeys(index.categories.values()))
    regions = {path: names for path, names in found.items() if open_index(path).mask_names is None}
    found = regions or found  # of the same images, regions overlap and need no PNGs
    if not found:
        return None
    names = {path.relative_to(root).as_posix(): path for path in found}
    words = {name: name.rpartition("_")[2].rpartition("/")[2] for name in names}
    by_word = {word: name for name, word in words.items()}
    splits = {split: by_word[word] for split, word in _splits(list(by_word)).items()}
    splits = splits or ({"train": next(iter(names))} if len(names) == 1 else {})
    folders = {split: _images_of(root, names[name]) for split, name in splits.items()}
    images = {split: place for split, place in folders.items() if place not in (None, ".")}
    classes = tuple(dict.fromkeys(name for path in found for name in found[path]))
    notes = ["the categories of the JSON files"]
    notes += [f"the images of {split} were not found: name their folder" for split, at in folders.items() if at is None]
    section = {"unlabeled": IGNORE if len(classes) > 1 else "none", **({"images": images} if images else {})}
    if not regions:  # panoptic: as they are published, the PNGs are in a folder of the file's name
        section["masks"] = {split: name.removesuffix(".json") for split, name in splits.items()}
    options = {"coco": section}
    return Recognized("coco", root, splits, options, classes, notes=tuple(notes))


def _images_of(root: Path, path: Path) -> str | None:
    names = open_index(path).file_names
    places = [root, *(place for place in islice(_folders(root), MAX_FOLDERS) if place != root)]
    found = next((place for place in places if names and (place / names[0]).is_file()), None)
    return None if found is None else found.relative_to(root).as_posix()


def _pairs(root: Path) -> Recognized | None:
    """images/<split> and masks/<split>, or <split>/images and <split>/masks, by the names that people use."""
    children = [child.name for child in _children(root)]
    outer = _named(children)
    if outer is not None:
        images, masks = outer
        inner = [child.name for child in _children(root / images) if (root / masks / child.name).is_dir()]
        splits = _splits(inner) or {"train": "."}
        return _as_pairs(root, splits, images, masks)
    splits = _splits(children)
    named = {split: _named([child.name for child in _children(root / place)]) for split, place in splits.items()}
    names = {pair for pair in named.values() if pair is not None}
    if len(names) != 1:
        return None
    ((images, masks),) = names
    kept = {split: splits[split] for split, pair in named.items() if pair is not None}
    return _as_pairs(root, kept, f"{{split}}/{images}", f"{{split}}/{masks}")


def _as_pairs(root: Path, splits: dict[str, str], images: str, masks: str) -> Recognized | None:
    places = tuple(root / split_folder(masks, part) for part in splits.values())
    if not any(next(image_files(place), None) for place in places):
        return None
    options = {key: name for key, name in (("images", images), ("masks", masks)) if name != key}
    stems = {path.stem for part in splits.values() for path in image_files(root / split_folder(images, part))}
    end = _mask_end(stems, {path.stem for place in places for path in image_files(place)})
    options |= {"mask_end": end} if end else {}
    return Recognized("folders", root, splits, options, masks=places)


def _mask_end(images: set[str], masks: set[str]) -> str:
    """What most masks have after the stem of an image, where few have its very stem."""
    if len(images & masks) * 2 >= len(masks):
        return ""
    ends = Counter(mask[len(image) :] for mask in masks for image in _starts(mask) if image in images)
    end, count = ends.most_common(1)[0] if ends else ("", 0)
    return end if count * 2 >= len(masks) else ""


def _starts(stem: str) -> Iterator[str]:
    return (stem[:length] for length in range(len(stem) - 1, 0, -1))


def _named(names: list[str]) -> tuple[str, str] | None:
    lower = {name.lower(): name for name in names}
    images = next((lower[name] for name in IMAGE_NAMES if name in lower), None)
    masks = next((lower[name] for name in MASK_NAMES if name in lower), None)
    return None if images is None or masks is None else (images, masks)


DETECTORS: tuple[Callable[[Path], Recognized | None], ...] = (_cityscapes, _cvat, _voc, _ade20k, _coco, _pairs)
