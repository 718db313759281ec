"""`prepare` recognises the layout of an archive, and what it prints is a data section that reads the very classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from segtrain.cli.main import main
from segtrain.config.cityscapes import EVALUATED
from segtrain.config.data import DataConfig
from segtrain.data.formats import find_samples, mask_reader
from segtrain.data.masks import LabelRules

Targets = Callable[..., dict[str, Any]]
MASK = np.array([[0, 1], [2, 1]], np.uint8)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "source"


@pytest.fixture
def put(place: Path) -> Callable[..., None]:
    """Write an image, a text or JSON below the folder that becomes the archive."""

    def write(name: str, content: Any) -> None:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        elif isinstance(content, dict):
            path.write_text(json.dumps(content))
        else:
            Image.fromarray(np.asarray(content, np.uint8)).save(path)

    return write


@pytest.fixture
def prepared(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[], tuple[DataConfig, str]]:
    """Pack the folder, run the command, and read what it prints as a data section."""

    def run() -> tuple[DataConfig, str]:
        archive = shutil.make_archive(str(tmp_path / "set"), "zip", place)
        assert main(["prepare", archive, str(tmp_path / "data")]) == 0
        text = capsys.readouterr().out
        (tmp_path / "cfg.yaml").write_text(text)
        return DataConfig.model_validate(YAML(typ="safe").load(text)["data"]), text

    return run


def targets(config: DataConfig, split: str = "train") -> dict[str, Any]:
    found = find_samples(config, split)
    assert not found.problems
    reader, rules = mask_reader(config), LabelRules.from_config(config)
    return {sample.name: rules.encode(reader(sample)).tolist() for sample in found.samples}


def test_folder_pairs_inside_other_folders(put: Any, prepared: Any) -> None:
    for split in ("training", "val"):
        put(f"my set/v1/Images/{split}/a.png", MASK)
        put(f"my set/v1/labels/{split}/a.png", MASK)
    config, text = prepared()
    assert (config.layout, config.splits) == ("folders", {"train": "training", "val": "val"})
    assert config.class_names == ("class_0", "class_1", "class_2")
    assert "values 0 (25 %), 1 (50 %), 2 (25 %)" in text
    assert "found in 2 of 2 masks" in text
    assert targets(config) == {"a": MASK.tolist()}


def test_splits_that_hold_images_and_masks(put: Any, prepared: Any) -> None:
    for split, value in (("train", 0), ("valid", 1)):
        put(f"{split}/images/a.png", MASK)
        put(f"{split}/masks/a.png", np.full((2, 2), value))
    config, _ = prepared()
    assert (config.images, config.masks, config.splits["val"]) == ("{split}/images", "{split}/masks", "valid")
    assert (targets(config), targets(config, "val")) == ({"a": [[0, 0], [0, 0]]}, {"a": [[1, 1], [1, 1]]})


def test_masks_whose_names_end_otherwise_than_those_of_images(put: Any, prepared: Any) -> None:
    for stem in ("a", "a_1", "b"):
        put(f"train/images/{stem}.png", MASK)
        put(f"train/masks/{stem}_mask.png", MASK)
    config, _ = prepared()
    assert config.mask_end == "_mask"
    assert targets(config) == {stem: MASK.tolist() for stem in ("a", "a_1", "b")}


def test_masks_of_0_and_255_get_a_label_map_and_no_guessed_classes(put: Any, prepared: Any) -> None:
    put("images/a.png", MASK)
    put("masks/a.png", [[0, 255], [0, 0]])
    config, text = prepared()
    assert config.label_map == {0: "class_0", 255: "class_255"}
    assert "nothing here names the classes" in text
    assert "no split named val was found" in text
    assert targets(config) == {"a": [[0, 1], [0, 0]]}


def test_masks_of_colours_get_a_table(put: Any, prepared: Any) -> None:
    put("images/a.png", MASK)
    put("masks/a.png", [[[9, 0, 0], [9, 0, 0]], [[0, 9, 0], [9, 0, 0]]])
    config, _ = prepared()
    assert config.colors == {"class_0": (9, 0, 0), "class_1": (0, 9, 0)}
    assert targets(config) == {"a": [[0, 0], [1, 0]]}


def test_cityscapes_with_its_evaluated_classes(put: Any, prepared: Any) -> None:
    put("leftImg8bit/train/ulm/a_leftImg8bit.png", MASK)
    put("gtFine/train/ulm/a_gtFine_labelIds.png", [[7, 8], [0, 33]])
    config, _ = prepared()
    assert (config.layout, config.class_names) == ("cityscapes", EVALUATED)
    assert targets(config) == {"ulm/a": [[0, 1], [255, 18]]}


def test_voc_with_the_values_that_were_found(put: Any, prepared: Any) -> None:
    put("VOCdevkit/VOC2012/JPEGImages/a.jpg", MASK)
    put("VOCdevkit/VOC2012/SegmentationClass/a.png", [[0, 1], [255, 1]])
    put("VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt", "a\n")
    put("VOCdevkit/VOC2012/ImageSets/Segmentation/trainval.txt", "a\n")
    config, _ = prepared()
    assert (config.layout, config.splits, config.class_names) == ("voc", {"train": "train"}, ("class_0", "class_1"))
    assert targets(config) == {"a": [[0, 1], [255, 1]]}


def test_cvat_with_the_names_of_its_labelmap(put: Any, prepared: Any) -> None:
    put("labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\nno: 9,0,0::\nignored:1,1,1::\n")
    put("SegmentationClass/a.png", [[[0, 0, 0], [9, 0, 0]], [[1, 1, 1], [0, 0, 0]]])
    put("JPEGImages/a.png", MASK)
    put("ImageSets/Segmentation/default.txt", "a\n")
    config, _ = prepared()
    assert (config.layout, config.splits, config.class_names) == ("cvat", {"train": "default"}, ("background", "no"))
    assert targets(config) == {"a": [[0, 1], [255, 0]]}


def test_coco_with_its_categories(put: Any, prepared: Any) -> None:
    pytest.importorskip("pycocotools.mask", reason="the extra `coco` is not installed")
    shape = {"size": [2, 2], "counts": [1, 2, 1]}
    image = {"id": 1, "file_name": "a.png", "height": 2, "width": 2}
    regions = [{"id": 1, "image_id": 1, "category_id": 5, "segmentation": shape, "iscrowd": 0}]
    categories = [{"id": 5, "name": "stop sign"}, {"id": 6, "name": 'bus: "red"'}]
    for split in ("train2017", "val2017"):
        put(f"{split}/a.png", MASK)
        content = {"images": [image], "annotations": regions, "categories": categories}
        put(f"annotations/instances_{split}.json", content)
    put("annotations/captions_train2017.json", {"images": [image], "annotations": []})
    config, _ = prepared()
    assert config.coco is not None
    assert config.splits["val"] == "annotations/instances_val2017.json"
    assert (config.class_names, config.coco.images["train"]) == (("stop sign", 'bus: "red"'), "train2017")
    assert targets(config) == {"a": [[255, 0], [0, 255]]}


def test_ade20k_with_the_names_of_its_list(put: Any, prepared: Any) -> None:
    put("ADE/objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t1\t1\twall\n2\t0.1\t1\t1\tbuilding, edifice\n")
    put("ADE/images/training/a.jpg", MASK)
    put("ADE/annotations/training/a.png", [[0, 1], [2, 1]])
    config, _ = prepared()
    assert (config.layout, config.class_names) == ("ade20k", ("wall", "building"))
    assert targets(config) == {"a": [[255, 0], [1, 0]]}


def test_a_folder_is_recognised_where_it_is(put: Any, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("images/train/a.png", MASK)
    put("masks/train/a.png", MASK)
    assert main(["prepare", str(place)]) == 0
    assert f'root: "{place}"' in capsys.readouterr().out
    assert main(["prepare", str(place), "elsewhere"]) == 2


def test_what_fits_no_layout_stays_unpacked_and_is_told(
    put: Any, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put("stuff/a.png", MASK)
    archive = shutil.make_archive(str(tmp_path / "set"), "gztar", place)
    assert main(["prepare", archive, str(tmp_path / "data")]) == 1
    assert (tmp_path / "data/stuff/a.png").is_file()
    assert "no layout recognised" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["https://host/set.zip", "data"], "prepare fetches nothing"),
        (["nowhere.zip", "data"], "no such file: nowhere.zip"),
        (["{here}/cfg.txt"], "name a new folder for the contents"),
        (["{here}/cfg.txt", "{here}"], "is there already"),
        (["{here}/cfg.txt", "{here}/new"], "neither a zip nor a tar archive"),
    ],
)
def test_wrong_arguments_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "cfg.txt").write_text("no archive")
    assert main(["prepare", *(argument.format(here=tmp_path) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_masks_that_are_photos_are_not_given_classes(put: Any, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    put("images/train/a.png", noise)
    put("masks/train/a.png", noise)
    assert main(["prepare", str(place)]) == 0
    out = capsys.readouterr().out
    assert "more than classes have" in out
    assert "classes: []" in out
