"""COCO files: regions become one class for each pixel by the stated rule, and shapes that cannot be drawn are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from segtrain.config.data import DataConfig
from segtrain.data.formats import find_samples, present_splits
from segtrain.data.frequencies import check_split
from segtrain.errors import DataError

tool = pytest.importorskip("pycocotools.mask", reason="the extra `coco` is not installed")

Make = Callable[..., DataConfig]
Save = Callable[..., Path]
Targets = Callable[..., dict[str, Any]]
CATEGORIES = [{"id": 3, "name": "dot"}, {"id": 17, "name": "block"}, {"id": 90, "name": "thing"}]
HEIGHT, WIDTH = 6, 8


def box(x: int, y: int, width: int, height: int) -> list[float]:
    """A rectangle as polygon; it covers exactly the pixels x to x + width - 1 and y to y + height - 1."""
    return [float(v) for v in (x, y, x + width, y, x + width, y + height, x, y + height)]


def filled(*boxes: tuple[int, int, int, int, int], base: int = 0) -> list[list[int]]:
    """What the mask should be: boxes (x, y, width, height, value) painted in this order."""
    mask = np.full((HEIGHT, WIDTH), base)
    for x, y, width, height, value in boxes:
        mask[y : y + height, x : x + width] = value
    return mask.tolist()


def region(category: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 7, "category_id": category, "segmentation": segmentation, "iscrowd": 0} | more


@pytest.fixture
def coco(data_config: Make, save: Save, tmp_path: Path) -> Callable[..., DataConfig]:
    """One image with regions, and the data section: background where none lies."""

    def make(*regions: dict[str, Any], changes: dict[str, Any] | None = None, **options: Any) -> DataConfig:
        save("photos/a/b.jpg", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        images = [{"id": 7, "file_name": "a/b.jpg", "height": HEIGHT, "width": WIDTH}]
        content = {"images": images, "annotations": list(regions), "categories": CATEGORIES} | (changes or {})
        (tmp_path / "train.json").write_text(json.dumps(content))
        section = {"unlabeled": "background", "images": {"train": "photos"}} | options
        return data_config(layout="coco", coco=section, splits={"train": "train.json", "val": "val.json"})

    return make


def runs(mask: Any) -> dict[str, Any]:
    """Run lengths as whole numbers, column by column, the first of zeros."""
    counts, value, length = [], 0, 0
    for pixel in np.asarray(mask).T.ravel():
        if pixel != value:
            counts.append(length)
            value, length = int(pixel), 0
        length += 1
    return {"size": [HEIGHT, WIDTH], "counts": [*counts, length]}


def test_polygons_become_the_class_of_their_category_by_name(coco: Make, targets_of: Targets) -> None:
    config = coco(region(17, [box(1, 1, 3, 2)]), region(3, [box(5, 2, 2, 3), box(0, 5, 1, 1)]))
    assert targets_of(config)["a/b"].tolist() == filled((1, 1, 3, 2, 1), (5, 2, 2, 3, 2), (0, 5, 1, 1, 2))


def test_the_smaller_region_lies_on_top_in_either_order(coco: Make, targets_of: Targets) -> None:
    large, small = region(17, [box(0, 0, 6, 5)]), region(3, [box(2, 1, 2, 2)])
    expected = filled((0, 0, 6, 5, 1), (2, 1, 2, 2, 2))
    assert targets_of(coco(large, small))["a/b"].tolist() == expected
    assert targets_of(coco(small, large))["a/b"].tolist() == expected


def test_of_regions_of_one_size_the_later_lies_on_top(coco: Make, targets_of: Targets) -> None:
    first, second = region(17, [box(0, 0, 4, 4)]), region(3, [box(2, 0, 4, 4)])
    assert targets_of(coco(first, second))["a/b"].tolist() == filled((0, 0, 4, 4, 1), (2, 0, 4, 4, 2))
    assert targets_of(coco(second, first))["a/b"].tolist() == filled((2, 0, 4, 4, 2), (0, 0, 4, 4, 1))


def test_all_forms_of_run_lengths_give_the_same_mask(coco: Make, targets_of: Targets) -> None:
    wanted = np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH))
    plain = runs(wanted)
    packed = tool.encode(np.asfortranarray(wanted.astype(np.uint8)))
    text = {"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode("ascii")}
    for shape in (plain, text):
        assert targets_of(coco(region(17, shape)))["a/b"].tolist() == wanted.tolist()


def test_crowd_regions_are_ignored_below_all_others_or_their_class(coco: Make, targets_of: Targets) -> None:
    crowd = region(17, runs(filled((0, 0, 2, 2, 1))), iscrowd=1)
    larger = region(3, [box(1, 0, 4, 4)])
    assert targets_of(coco(crowd, larger))["a/b"].tolist() == filled((0, 0, 2, 2, 255), (1, 0, 4, 4, 2))
    kept = coco(crowd, larger, crowd="class")
    assert targets_of(kept)["a/b"].tolist() == filled((0, 0, 2, 2, 1), (1, 0, 4, 4, 2))


def test_pixels_without_a_region_are_what_the_configuration_says(coco: Make, targets_of: Targets) -> None:
    config = coco(region(17, [box(1, 1, 3, 2)]), unlabeled="ignore")
    assert targets_of(config)["a/b"].tolist() == filled((1, 1, 3, 2, 1), base=255)
    with pytest.raises(ValidationError, match="Field required"):
        DataConfig.model_validate({"root": "r", "layout": "coco", "coco": {}, "classes": ["a", "b"]})
    with pytest.raises(ValidationError, match="coco: missing; say what pixels without annotation are"):
        DataConfig.model_validate({"root": "r", "layout": "coco", "classes": ["a", "b"]})


def test_categories_that_are_no_class_are_errors_unless_something_is_said(coco: Make, targets_of: Targets) -> None:
    thing = region(90, [box(1, 1, 3, 2)])
    with pytest.raises(DataError, match=r"train\.json has labels that are no class: thing"):
        find_samples(coco(thing), "train")
    assert targets_of(coco(thing, others="ignore"))["a/b"].tolist() == filled((1, 1, 3, 2, 255))
    config = coco(thing).model_copy(update={"name_map": {"thing": "dot"}})
    assert targets_of(config)["a/b"].tolist() == filled((1, 1, 3, 2, 2))
    assert targets_of(coco(region(17, [box(1, 1, 3, 2)])))["a/b"].tolist() == filled((1, 1, 3, 2, 1))  # none left


def test_an_image_without_regions_is_all_unlabeled(coco: Make, targets_of: Targets) -> None:
    assert targets_of(coco())["a/b"].tolist() == filled()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "has no segmentation"),
        ([[1.0, 1.0, 3.0, 3.0]], "at least three points"),
        ([[1.0, 1.0, 3.0, 3.0, 2.0]], "at least three points"),
        ([[1.0, 1.0, 3.0, 3.0, 2.0, 1e9]], "far outside of its 8x6 image"),
        ([[1.0, 1.0, 3.0, 3.0, 2.0, float("nan")]], "far outside of its 8x6 image"),
        ([["a", "b", 3.0, 3.0, 2.0, 2.0]], "cannot be drawn"),
        ({"size": [6, 8], "counts": [40, 7]}, "do not add up to the 48 pixels"),
        ({"size": [6, 8], "counts": [100, -52]}, "do not add up to the 48 pixels"),
        ({"size": [8, 6], "counts": [48]}, "has run lengths for (8, 6)"),
        ({"size": [6, 8], "counts": "00"}, "do not add up to the 48 pixels"),
        ({"size": [6, 8], "counts": "o"}, "cut off"),
        ({"size": [6, 8], "counts": "\x01"}, "no text of COCO"),
        ({"counts": [48]}, "neither polygons nor run lengths"),
        ("text", "neither polygons nor run lengths"),
    ],
)
def test_shapes_that_cannot_be_drawn_are_told_with_image_and_annotation(
    coco: Make, segmentation: Any, message: str
) -> None:
    config = coco(region(17, [box(1, 1, 3, 2)]), region(17, segmentation, id=42))
    with pytest.raises(DataError) as caught:
        check_split(config, "train", cache=False, show_progress=False)
    assert message in str(caught.value)
    assert "a/b: annotation 42" in str(caught.value)


def test_a_size_that_is_not_that_of_the_image_is_told(coco: Make) -> None:
    images = [{"id": 7, "file_name": "a/b.jpg", "height": HEIGHT, "width": WIDTH + 1}]
    with pytest.raises(DataError, match="the mask of a/b is 9x6, its image 8x6"):
        check_split(coco(changes={"images": images}), "train", cache=False, show_progress=False)


def test_a_size_that_would_take_all_memory_is_refused(coco: Make) -> None:
    images = [{"id": 7, "file_name": "a/b.jpg", "height": 10**6, "width": 10**6}]
    with pytest.raises(DataError, match=r"1000000x1000000 pixels are more than data\.max_pixels"):
        check_split(coco(changes={"images": images}), "train", cache=False, show_progress=False)


def test_images_that_are_missing_or_named_twice_are_listed(coco: Make) -> None:
    size = {"height": HEIGHT, "width": WIDTH}
    names = {7: "a/b.jpg", 9: "gone.jpg", 8: "a/b.jpg"}
    found = find_samples(
        coco(changes={"images": [{"id": i, "file_name": n} | size for i, n in names.items()]}), "train"
    )
    assert [sample.key for sample in found.samples] == [7]
    assert sorted(problem.reason.split(" (")[0].split(" names ")[-1] for problem in found.problems) == [
        "no such image",
        "this sample twice: a/b",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": None}, "no COCO file of regions: it has no list categories"),
        ({"images": []}, "names no images"),
        ({"images": [{"id": 7}]}, "an entry is not as in COCO files .KeyError: 'file_name'"),
        ({"images": [{"id": "7", "file_name": "a.jpg", "height": 1, "width": 1}]}, "expected a whole number"),
        ({"annotations": [region(5, [box(0, 0, 1, 1)])]}, "annotations of categories that are not listed: 5"),
        ({"annotations": [[]]}, "an entry is not as in COCO files"),
    ],
)
def test_files_that_are_no_coco_files_are_told(coco: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_samples(coco(changes=changes), "train")


def test_a_file_that_is_no_json_and_one_that_is_missing_are_told(coco: Make, tmp_path: Path) -> None:
    config = coco()
    with pytest.raises(DataError, match=r"val\.json cannot be read"):
        find_samples(config, "val")
    assert present_splits(config) == ["train"]
    (tmp_path / "val.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"val\.json is no JSON file"):
        find_samples(config, "val")


def test_a_changed_file_is_read_and_scanned_again(coco: Make) -> None:
    assert check_split(coco(region(17, [box(0, 0, 2, 2)])), "train", show_progress=False).counts.tolist() == [
        [44, 4, 0, 0]
    ]
    config = coco(region(3, [box(0, 0, 2, 3)]))
    assert check_split(config, "train", show_progress=False).counts.tolist() == [[42, 0, 6, 0]]
