"""Cityscapes, ADE20K and Pascal VOC as they are published: every number becomes the class it stands for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from segtrain.config.cityscapes import EVALUATED, IDS
from segtrain.config.data import DataConfig
from segtrain.data.formats import find_samples, present_splits
from segtrain.data.frequencies import check_split
from segtrain.errors import DataError

Make = Callable[..., DataConfig]
Save = Callable[..., Path]
Targets = Callable[..., dict[str, Any]]

# labelId: trainId of the official list; all other ids are not evaluated.
OFFICIAL = dict(
    zip(
        [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33],
        range(19),
        strict=True,
    )
)


def city(save: Save, stem: str, mask: Any, *, end: str, part: str = "train", fine: str = "gtFine") -> None:
    save(f"leftImg8bit/{part}/{stem}_leftImg8bit.png", np.zeros((*np.shape(mask), 3), np.uint8))
    save(f"{fine}/{part}/{stem}_{fine}_{end}.png", np.asarray(mask, np.uint8))
    save(f"{fine}/{part}/{stem}_{fine}_instanceIds.png", np.full(np.shape(mask), 99, np.uint8))


def test_the_ids_of_cityscapes_become_the_official_train_ids(
    data_config: Make, save: Save, targets_of: Targets
) -> None:
    city(save, "ulm/ulm_000000_000019", [list(range(34))], end="labelIds")
    config = data_config(layout="cityscapes", classes=list(EVALUATED))
    (target,) = targets_of(config).values()
    assert target.tolist() == [[OFFICIAL.get(number, 255) for number in range(34)]]
    (sample,) = find_samples(config, "train").samples
    assert sample.name == "ulm/ulm_000000_000019"
    assert present_splits(config) == ["train"]


def test_train_ids_of_cityscapes_are_read_as_they_are(data_config: Make, save: Save, targets_of: Targets) -> None:
    values = [[*range(19), 255]]
    city(save, "ulm/a", values, end="labelTrainIds", fine="gtCoarse")
    options = {"labels": "train_ids", "annotations": "gtCoarse"}
    config = data_config(layout="cityscapes", classes=list(EVALUATED), cityscapes=options)
    assert targets_of(config)["ulm/a"].tolist() == values


def test_labels_of_cityscapes_are_matched_by_name_and_none_is_lost_silently(
    data_config: Make, save: Save, targets_of: Targets
) -> None:
    city(save, "ulm/a", [[IDS["road"], IDS["person"], IDS["rider"], IDS["parking"], IDS["sky"], 0]], end="labelIds")
    classes = ["person", "road", "parking"]
    with pytest.raises(ValidationError, match=r"name_map: of the labels of Cityscapes, sidewalk, .* are no class"):
        data_config(layout="cityscapes", classes=classes)
    names = {name: "ignore" for name in EVALUATED if name not in classes} | {"rider": "person"}
    config = data_config(layout="cityscapes", classes=classes, name_map=names)
    assert targets_of(config)["ulm/a"].tolist() == [[1, 0, 0, 2, 255, 255]]
    with pytest.raises(ValidationError, match=r"Cityscapes \(ids\) has no raod"):
        data_config(layout="cityscapes", classes=classes, name_map={**names, "raod": "ignore"})


def test_ids_that_cityscapes_does_not_have_are_errors(data_config: Make, save: Save) -> None:
    city(save, "ulm/a", [[7, 34]], end="labelIds")
    with pytest.raises(DataError, match=r"unknown mask values: 34 \(1 pixels\)"):
        check_split(
            data_config(layout="cityscapes", classes=list(EVALUATED)), "train", cache=False, show_progress=False
        )


def test_a_mask_of_cityscapes_that_is_missing_is_told_by_its_name(data_config: Make, save: Save) -> None:
    city(save, "ulm/a", [[7]], end="labelTrainIds")
    (problem,) = find_samples(data_config(layout="cityscapes", classes=list(EVALUATED)), "train").problems
    assert "gtFine/train/ulm/a_gtFine_labelIds.png" in problem.reason


def test_ade20k_ignores_0_and_shifts_the_rest_by_one_in_this_order(
    data_config: Make, save: Save, targets_of: Targets
) -> None:
    save("images/training/a.jpg", np.zeros((1, 4, 3), np.uint8))
    save("annotations/training/a.png", np.array([[0, 1, 2, 3]], np.uint8))
    config = data_config(layout="ade20k", splits={"train": "training", "val": "validation"})
    assert targets_of(config)["a"].tolist() == [[255, 0, 1, 2]]


@pytest.mark.parametrize("value", [4, 255])
def test_values_of_ade20k_above_its_classes_are_errors(data_config: Make, save: Save, value: int) -> None:
    save("images/training/a.png", np.zeros((1, 2, 3), np.uint8))
    save("annotations/training/a.png", np.array([[1, value]], np.uint8))
    config = data_config(layout="ade20k", splits={"train": "training", "val": "validation"})
    with pytest.raises(DataError, match=rf"unknown mask values: {value} \(1 pixels\)"):
        check_split(config, "train", cache=False, show_progress=False)


@pytest.fixture
def voc(data_config: Make, save: Save, tmp_path: Path) -> Make:
    """Two images of VOC with palette masks, one of them listed for training."""

    def make(**changes: Any) -> DataConfig:
        palette = np.random.default_rng(0).integers(0, 256, 768).tolist()
        for stem, values in (("2007_000032", [[0, 1, 2, 255]]), ("2007_000039", [[2, 2, 0, 255]])):
            save(f"JPEGImages/{stem}.jpg", np.zeros((1, 4, 3), np.uint8))
            mask = Image.frombytes("P", (4, 1), np.array(values, np.uint8).tobytes())
            mask.putpalette(palette)
            save(f"SegmentationClass/{stem}.png", mask)
            save(f"Augmented/{stem}.png", np.zeros((1, 4), np.uint8))
        sets = tmp_path / "ImageSets/Segmentation"
        sets.mkdir(parents=True)
        (sets / "train.txt").write_text("2007_000039\n")
        (sets / "val.txt").write_text("2007_000039\n2007_000032\n")
        return data_config(**{"layout": "voc"} | changes)

    return make


def test_voc_reads_palette_indices_of_the_stems_in_its_lists(voc: Make, targets_of: Targets) -> None:
    config = voc(splits={"train": "train", "val": "val.txt", "test": "test"})
    assert {name: target.tolist() for name, target in targets_of(config).items()} == {"2007_000039": [[2, 2, 0, 255]]}
    assert list(targets_of(config, "val")) == ["2007_000039", "2007_000032"]
    assert find_samples(config, "train").unused_masks == []
    assert present_splits(config) == ["train", "val"]


def test_voc_takes_another_folder_of_masks(voc: Make, targets_of: Targets) -> None:
    assert targets_of(voc(voc={"masks": "Augmented"}))["2007_000039"].tolist() == [[0, 0, 0, 0]]


def test_stems_of_voc_without_files_are_listed(voc: Make, tmp_path: Path) -> None:
    config = voc()
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("none\n2007_000032\n2007_000039\n")
    (tmp_path / "SegmentationClass/2007_000032.png").unlink()
    found = find_samples(config, "train")
    assert [(problem.path.name, problem.reason.split(" (")[0]) for problem in found.problems] == [
        ("none.jpg", "no such image"),
        ("2007_000032.jpg", f"no mask: expected {tmp_path / 'SegmentationClass/2007_000032.png'}"),
    ]
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("2007_000032\n2007_000032\n")
    with pytest.raises(DataError, match="names that stand there more than once: 1\n  2007_000032"):
        find_samples(config, "train")


def test_label_map_says_what_voc_means_instead(voc: Make, targets_of: Targets) -> None:
    config = voc(label_map={0: 1, 2: "background", 255: "dot"})
    assert targets_of(config)["2007_000039"].tolist() == [[0, 0, 1, 2]]
