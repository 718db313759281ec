"""Validation finds every kind of problem, groups it, and suspects label shifts only with evidence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from segtrain.config.data import DataConfig
from segtrain.data.problems import Kind
from segtrain.data.validation import TITLES, Finding, Validation, validate
from segtrain.data.validation.suspicions import find_suspicions

Make = Callable[..., DataConfig]
Pair = Callable[..., tuple[Path, Path]]
MASK = np.array([[0, 1, 2, 255], [0, 0, 1, 255]])


def check(config: DataConfig, **options: Any) -> dict[str, Finding]:
    result = validate(config, show_progress=False, cache=False, **options)
    return {finding.kind: finding for finding in result.findings}


@pytest.fixture
def spoilt(pair: Pair, tmp_path: Path) -> Path:
    """A split with one good sample and one of each kind of bad file."""
    pair("good", MASK)
    pair("large", np.zeros((50, 50)))
    pair("mismatch", MASK, image_size=(5, 4))
    pair("values", np.where(MASK == 2, 7, MASK))
    pair("more_values", np.where(MASK > 0, [[7, 9, 9, 7]], MASK))
    pair("unused", MASK)[0].unlink()
    pair("lost", MASK)[1].unlink()
    truncated, _ = pair("truncated", MASK)
    truncated.write_bytes(truncated.read_bytes()[:-12])
    unreadable, _ = pair("unreadable", MASK)
    unreadable.write_bytes(b"no image at all")
    misnamed, _ = pair("misnamed", MASK)
    misnamed.rename(misnamed.with_suffix(".jpg"))
    twice, _ = pair("twice", MASK)
    twice.with_suffix(".bmp").write_bytes(twice.read_bytes())
    pair("colours", MASK)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (2, 4, 3), dtype=np.uint8)).save(
        tmp_path / "masks/train/colours.png"
    )
    rotated, _ = pair("rotated", MASK, image_suffix=".jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(rotated).save(rotated, exif=exif)
    pair("empty", np.full((2, 4), 255))
    return tmp_path


def test_every_kind_of_problem_is_found_and_grouped(data_config: Make, spoilt: Path) -> None:
    found = check(data_config(max_pixels=2000, splits={"train": "train"}))
    files = {
        Kind.MISSING: "lost.png",
        Kind.AMBIGUOUS: "twice",
        Kind.UNREADABLE: "unreadable.png",
        Kind.TRUNCATED: "truncated.png",
        Kind.MISNAMED: "misnamed.jpg",
        Kind.ROTATED: "rotated.jpg",
        Kind.PIXEL_TYPE: "masks/train/colours.png",
        Kind.SIZE_MISMATCH: "masks/train/mismatch.png",
        "empty_masks": "masks/train/empty.png",
        "unused_masks": "masks/train/unused.png",
    }
    for kind, file in files.items():
        (entry,) = found.pop(str(kind)).entries
        assert file in entry.file
        assert entry.split == "train"
        assert str(spoilt) not in entry.file
    assert [entry.file for entry in found.pop("too_large").entries] == [
        "images/train/large.png",
        "masks/train/large.png",
    ]
    assert found.pop("unknown_values").count == 2
    assert not found


def test_unknown_values_are_listed_by_value_over_all_masks(data_config: Make, spoilt: Path) -> None:
    finding = check(data_config(splits={"train": "train"}))["unknown_values"]
    assert finding.notes[:2] == ["value 7: 3 pixels in 2 masks", "value 9: 3 pixels in 1 mask"]
    assert "data.label_map" in finding.notes[2]


def test_every_kind_of_bad_file_has_a_title() -> None:
    assert {str(kind) for kind in Kind} <= set(TITLES)


def test_a_clean_set_gives_no_finding(data_config: Make, pair: Pair) -> None:
    for number in range(3):
        pair(str(number), MASK)
    assert check(data_config(splits={"train": "train"})) == {}


def test_a_class_absent_from_a_split_is_a_problem(data_config: Make, pair: Pair) -> None:
    pair("a", MASK)
    pair("b", np.where(MASK == 2, 0, MASK), split="val")
    finding = check(data_config(), threshold=None)["absent_classes"]
    assert (finding.count, finding.notes) == (1, ["val: dot"])


@pytest.fixture
def labelled(data_config: Make, pair: Pair) -> Callable[..., dict[str, Finding]]:
    """Check two masks of each split; 0 is none of the classes, and 1 and 2 are block and dot."""

    def look(*, train: list[Any], val: list[Any], **changes: Any) -> dict[str, Finding]:
        for split, masks in (("train", train), ("val", val)):
            for number, mask in enumerate(masks):
                pair(f"{number}", mask, split=split)
        meanings = {0: "none", 1: "block", 2: "dot", 255: "ignore"}
        sections = {"classes": ["block", "dot"], "labels": "multi_label", "label_map": meanings}
        return check(data_config(**sections | changes), threshold=None)

    return look


def test_classes_without_positives_or_negatives_are_problems(labelled: Callable[..., dict[str, Finding]]) -> None:
    whole = np.ones((2, 4))
    found = labelled(train=[MASK, MASK], val=[whole, whole])
    assert set(found) == {"absent_classes", "no_negatives"}
    assert (found["absent_classes"].count, found["absent_classes"].notes) == (1, ["val: dot (16 pixels say no)"])
    one_sided = found["no_negatives"]
    assert (one_sided.count, one_sided.notes) == (1, ["val: block"])
    assert [entry.file for entry in one_sided.entries] == ["masks/val/0.png", "masks/val/1.png"]
    assert one_sided.severity == "problem"


def test_one_class_has_negatives_too_or_it_is_told(labelled: Callable[..., dict[str, Finding]]) -> None:
    changes = {
        "classes": ["block"],
        "labels": "exclusive",
        "label_map": {0: "none", 1: "block", 2: "none", 255: "ignore"},
    }
    some = np.array([[1, 1, 255, 255]])
    found = labelled(train=[MASK, np.zeros((2, 4))], val=[some, np.full((1, 4), 255)], **changes)
    assert set(found) == {"no_negatives", "empty_masks"}  # a mask without the class is a negative, and no finding
    assert [entry.file for entry in found["no_negatives"].entries] == ["masks/val/0.png"]
    assert [entry.file for entry in found["empty_masks"].entries] == ["masks/val/1.png"]


def test_a_split_that_cannot_be_listed_does_not_hide_the_others(data_config: Make, pair: Pair, tmp_path: Path) -> None:
    pair("a", MASK)
    (tmp_path / "images/val").mkdir()
    found = check(data_config())
    assert "no folder" in found["unusable_split"].entries[0].detail
    assert set(found) == {"unusable_split"}


def scene(seed: int) -> Any:
    """Blobs of all sizes, uint8 [192, 256, 3]."""
    generator = np.random.default_rng(seed)
    image = np.full((192, 256, 3), 120.0)
    for cells in (4, 8, 16):
        image += cv2.resize(generator.normal(0, 160 / cells, (cells, cells, 3)), (256, 192))
    return image.clip(0, 255).astype(np.uint8)


def test_copies_in_other_splits_are_found_however_they_were_turned_and_stored(
    data_config: Make, save: Callable[..., Path]
) -> None:
    def add(split: str, name: str, image: Any, **options: Any) -> None:
        height, width = image.shape[:2]
        mask = np.zeros((height, width), np.uint8)
        mask[0, :3] = [0, 1, 2]
        save(f"images/{split}/{name}.jpg", np.ascontiguousarray(image), **options)
        save(f"masks/{split}/{name}.png", mask)

    for number in range(8):
        add("train", f"{number}", scene(number))
        add("val", f"other{number}", scene(100 + number))
    add("val", "turned", np.rot90(scene(1)), quality=60)
    add("val", "flipped", scene(2)[:, ::-1], quality=60)
    add("val", "small", cv2.resize(scene(3), (128, 96), interpolation=cv2.INTER_AREA), quality=60)
    add("val", "plain", np.full((50, 60, 3), 90, np.uint8))
    add("train", "plain", np.full((50, 60, 3), 90, np.uint8))
    config = data_config()
    result = validate(config, show_progress=False)
    (finding,) = result.findings
    pairs = {(Path(entry.file).stem, Path(str(entry.other)).stem) for entry in finding.entries}
    assert pairs == {("1", "turned"), ("2", "flipped"), ("3", "small")}
    assert finding.notes == ["3 of 9 images of train look like 3 of 12 images of val"]
    assert result.num_plain == 2
    again = validate(config, show_progress=False)
    assert again.findings == result.findings
    assert {scan.num_read for scan in again.scans.values()} == {0}


@pytest.mark.parametrize(
    ("values", "evidence"),
    [
        ([1, 2, 3], "numbered from 1? Then write data.label_map: {1: background, 2: block, 3: dot}"),
        ([0, 1, 2, 3], "write data.label_map: {0: ignore, 1: background, 2: block, 3: dot}"),
        ([0, 127, 254], "{0: background, 127: block, 254: dot}"),
        ([0, 1, 9], "dot never occurs, and 9 has no meaning: is 9 this class?"),
        ([1, 2], "class 0 (background) never occurs, and all others do"),
        (list(range(0, 200, 7)), "resize with nearest neighbour, save as PNG"),
        ([0, 1] + [255] * 40, "of all pixels are ignored"),
    ],
)
def test_values_that_look_shifted_are_a_suspicion_with_its_evidence(
    data_config: Make, pair: Pair, values: list[int], evidence: str
) -> None:
    pair("a", np.array([values, values]))
    finding = check(data_config())["label_shift"]
    assert evidence in finding.notes[0]
    assert finding.severity.value == "warning"


def test_masks_of_0_and_255_of_two_classes_are_a_suspicion(data_config: Make, pair: Pair) -> None:
    pair("a", np.array([[0, 255], [0, 0]]))
    found = check(data_config(classes=["background", "crack"]))
    assert "{0: background, 255: crack}" in found["label_shift"].notes[0]


@pytest.mark.parametrize("pixels", [[5, 5, 5], [5, 0, 5], [5, 5, 0], [5, 0, 0]])
def test_plain_masks_raise_no_suspicion(data_config: Make, pixels: list[int]) -> None:
    assert find_suspicions(data_config(), pixels, ignored=3, in_bad_masks=[], unknown=[]) == []


def test_warnings_fail_when_asked_and_accepted_kinds_never(data_config: Make) -> None:
    found = [Finding("missing", 1), Finding("unused_masks", 2)]
    result = Validation({}, found, None, 0)
    assert [one.kind for one in result.failing()] == ["missing"]
    assert [one.kind for one in result.failing(strict=True)] == ["missing", "unused_masks"]
    assert result.failing(accept=["missing"]) == []


@pytest.mark.slow
@pytest.mark.camvid
def test_nothing_is_found_in_splits_of_camvid_that_share_no_drive(camvid: Path, data_config: Make) -> None:
    names = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
    found = check(data_config(root=str(camvid), classes=names, ignore_index=11), splits=["val", "test"])
    assert not found
