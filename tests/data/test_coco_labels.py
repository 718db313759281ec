"""COCO files as labels that may overlap, and panoptic PNGs: by the rules that data/README.md states."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from segtrain.cli.main import main
from segtrain.config.data import DataConfig
from segtrain.data.formats import find_samples
from segtrain.data.frequencies import check_split
from segtrain.data.sources import FilePairs
from segtrain.errors import DataError

Make = Callable[..., DataConfig]
CATEGORIES = [{"id": 3, "name": "dot"}, {"id": 17, "name": "block"}, {"id": 90, "name": "thing"}]
HEIGHT, WIDTH = 4, 6
IMAGE = {"id": 7, "file_name": "b.jpg", "height": HEIGHT, "width": WIDTH}


def runs(mask: Any) -> dict[str, Any]:
    """Run lengths, column by column, the first of zeros."""
    counts, value, length = [], 0, 0
    for pixel in np.asarray(mask).T.ravel():
        if pixel != value:
            counts.append(length)
            value, length = int(pixel), 0
        length += 1
    return {"size": [HEIGHT, WIDTH], "counts": [*counts, length]}


def box(x: int, y: int, width: int, height: int) -> Any:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def region(category: int, mask: Any, **more: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 7, "category_id": category, "segmentation": runs(mask), "iscrowd": 0} | more


@pytest.fixture
def target_of(data_config: Make, save: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """The target of one image, in the file `train.json`, whose classes are block and dot; the scan counts the same."""
    pytest.importorskip("pycocotools.mask", reason="the extra `coco` is not installed")

    def read(*regions: dict[str, Any], **options: Any) -> Any:
        save("b.jpg", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        content = {"images": [IMAGE], "annotations": list(regions), "categories": CATEGORIES}
        (tmp_path / "train.json").write_text(json.dumps(content))
        plain = {"classes": ["block", "dot"], "labels": "multi_label", "splits": {"train": "train.json"}}
        data = data_config(layout="coco", coco={"unlabeled": "none"} | options, **plain)
        scan = check_split(data, "train", cache=False, show_progress=False)
        (target,) = [FilePairs(scan.samples, data, split="train").read(0)[1]]
        assert scan.labels is not None
        counted = [[(one == value).sum() for one in target] for value in (1, 0, 255)]
        np.testing.assert_array_equal(scan.labels[0], np.ravel(counted))
        return target

    return read


def test_overlapping_regions_are_each_in_the_channel_of_their_class(target_of: Callable[..., Any]) -> None:
    block, dot, other = box(0, 0, 4, 4), box(2, 1, 3, 2), box(5, 3, 1, 1)
    target = target_of(region(17, block), region(3, dot), region(17, other))
    np.testing.assert_array_equal(target, [block | other, dot])
    assert target.dtype == np.uint8


def test_crowds_are_ignored_for_their_class_where_nothing_else_of_it_lies(target_of: Callable[..., Any]) -> None:
    crowd, block = box(0, 0, 4, 2), box(0, 0, 2, 4)
    regions = (region(17, crowd, iscrowd=1), region(17, block))
    expected = np.where(block == 1, 1, 255 * crowd)
    np.testing.assert_array_equal(target_of(*regions), [expected, np.zeros_like(block)])
    np.testing.assert_array_equal(target_of(*regions, crowd="class")[0], crowd | block)


def test_what_is_no_class_is_ignored_for_all_or_none_of_them(target_of: Callable[..., Any]) -> None:
    thing, block = box(1, 1, 3, 3), box(0, 0, 3, 3)
    regions = (region(90, thing), region(17, block))
    ignored = 255 * thing
    np.testing.assert_array_equal(target_of(*regions, others="ignore"), [np.where(block, 1, ignored), ignored])
    np.testing.assert_array_equal(target_of(*regions, others="none"), [block, np.zeros_like(block)])
    with pytest.raises(DataError, match="labels that are no class: thing"):
        target_of(*regions)


def test_pixels_without_a_region_are_none_of_the_classes_ignored_or_one(target_of: Callable[..., Any]) -> None:
    block = box(0, 0, 3, 3)
    np.testing.assert_array_equal(
        target_of(region(17, block), unlabeled="ignore"), [np.where(block, 1, 255)] * 1 + [np.where(block, 0, 255)]
    )
    np.testing.assert_array_equal(target_of(region(17, block), unlabeled="dot"), [block, 1 - block])


SEGMENTS = [
    {"id": 5, "category_id": 17, "iscrowd": 0},
    {"id": 70000, "category_id": 3, "iscrowd": 0},
    {"id": 300, "category_id": 3, "iscrowd": 1},
]
IDS = np.array([[0, 0, 5, 5, 300, 300]] * 2 + [[0, 70000, 70000, 5, 5, 300]] * 2)


@pytest.fixture
def panoptic(data_config: Make, save: Callable[..., Path], tmp_path: Path) -> Callable[..., DataConfig]:
    """One image, its PNG of ids in annotations/panoptic_train, and the data section."""

    def make(ids: Any = IDS, *, segments: Any = SEGMENTS, entry: Any = None, **changes: Any) -> DataConfig:
        save("train/b.jpg", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
        save("annotations/panoptic_train/b.png", colors)
        annotation = {"image_id": 7, "file_name": "b.png", "segments_info": segments}
        entries = [annotation] if entry is None else entry
        content = {"images": [IMAGE], "annotations": entries, "categories": CATEGORIES}
        (tmp_path / "annotations/panoptic_train.json").write_text(json.dumps(content))
        section = {
            "unlabeled": "background",
            "images": {"train": "train"},
            "masks": {"train": "annotations/panoptic_train"},
        } | changes
        return data_config(layout="coco", coco=section, splits={"train": "annotations/panoptic_train.json"})

    return make


def target(data: DataConfig) -> Any:
    scan = check_split(data, "train", show_progress=False)
    return FilePairs(scan.samples, data, split="train").read(0)[1]


def test_segments_become_the_class_of_their_category(panoptic: Callable[..., DataConfig]) -> None:
    meaning = {0: 0, 5: 1, 70000: 2, 300: 255}  # background, block, dot, and the crowd ignored
    np.testing.assert_array_equal(target(panoptic()), np.vectorize(meaning.get)(IDS))
    np.testing.assert_array_equal(target(panoptic(crowd="class")), np.vectorize((meaning | {300: 2}).get)(IDS))
    np.testing.assert_array_equal(target(panoptic(unlabeled="ignore"))[0, 0], 255)


def test_segments_are_labels_too(panoptic: Callable[..., DataConfig]) -> None:
    plain = panoptic(unlabeled="ignore").model_dump(mode="json")
    section = plain | {"classes": ["block", "dot"], "labels": "multi_label"}
    section["coco"] |= {"unlabeled": "none", "crowd": "class"}
    kept = {key: section[key] for key in ("root", "layout", "coco", "splits", "classes", "labels")}
    found = target(DataConfig.model_validate(kept))
    np.testing.assert_array_equal(found, [IDS == 5, (IDS == 70000) | (IDS == 300)])


def test_what_does_not_fit_a_panoptic_file_is_told(panoptic: Callable[..., DataConfig], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not list for b: 9 \(R \+ 256 G"):
        target(panoptic(np.full((HEIGHT, WIDTH), 9)))
    with pytest.raises(DataError, match=r"say where in data.coco.masks.train, such as panoptic_train"):
        find_samples(panoptic(masks={}), "train")
    with pytest.raises(DataError, match=r"data.coco.masks is for panoptic files"):
        find_samples(panoptic(entry=[region(17, box(0, 0, 2, 2))]), "train")
    mixed = [{"image_id": 7, "file_name": "b.png", "segments_info": []}, region(17, box(0, 0, 2, 2))]
    with pytest.raises(DataError, match="some annotations are panoptic"):
        find_samples(panoptic(entry=mixed), "train")
    with pytest.raises(DataError, match="labels that are no class: thing"):
        find_samples(panoptic(segments=[{"id": 5, "category_id": 90}]), "train")
    with pytest.raises(ValidationError, match=r"coco.masks: valid not among"):
        panoptic(masks={"valid": "x"})
    data = panoptic()
    (tmp_path / "annotations/panoptic_train/b.png").unlink()
    (problem,) = find_samples(data, "train").problems
    assert "expected b.png in data.coco.masks.train" in problem.reason


def test_a_changed_png_or_json_file_is_counted_again(panoptic: Callable[..., DataConfig]) -> None:
    assert check_split(panoptic(), "train", show_progress=False).num_read == 1
    assert check_split(panoptic(), "train", show_progress=False).num_read == 1  # both files were written anew
    data = panoptic()
    check_split(data, "train", show_progress=False)
    assert check_split(data, "train", show_progress=False).num_read == 0


def test_prepare_proposes_the_section_of_a_panoptic_set(
    panoptic: Callable[..., DataConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    panoptic()
    assert main(["prepare", str(tmp_path)]) == 0
    assert "masks: {train: annotations/panoptic_train}" in capsys.readouterr().out
