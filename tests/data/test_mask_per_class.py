"""One mask file for each class: labels that overlap, one class for each pixel, and what does not fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtrain.config.data import DataConfig
from segtrain.data import check_split, scan_frequencies
from segtrain.data.dataset import EvalDataset
from segtrain.data.formats import find_samples
from segtrain.data.splits import gather
from segtrain.errors import ConfigError, DataError

Save = Callable[..., Path]
CRACK = [[1, 1, 0], [0, 0, 0]]
STAIN = [[0, 1, 1], [0, 0, 255]]
VALUES = {0: "none", 1: "present", 255: "ignore"}


@pytest.fixture
def write(save: Save) -> Callable[..., None]:
    """Write an image of 2 x 3 pixels and the mask of each class that is given."""

    def make(name: str = "a", *, split: str = "train", **masks: Any) -> None:
        save(f"images/{split}/{name}.png", np.zeros((2, 3, 3), np.uint8))
        for label, mask in masks.items():
            save(f"masks/{label}/{split}/{name}.png", np.asarray(mask, np.uint8))

    return make


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DataConfig]:
    """A factory of data sections of the layout with the classes crack and stain, multi-label unless said otherwise."""

    def make(*, labels: str = "multi_label", classes: Any = ("crack", "stain"), **section: Any) -> DataConfig:
        plain = {"root": str(tmp_path), "layout": "mask_per_class", "classes": list(classes), "labels": labels}
        return DataConfig.model_validate(plain | {"mask_per_class": {"values": VALUES} | section})

    return make


def target(data: DataConfig) -> list[Any]:
    return EvalDataset(check_split(data, "train", cache=False).samples, data)[0]["target"].tolist()


def test_overlapping_classes_keep_their_pixels(write: Callable[..., None], config: Callable[..., DataConfig]) -> None:
    write(crack=CRACK, stain=STAIN)
    assert target(config()) == [CRACK, STAIN]
    frequencies = scan_frequencies(config())
    assert frequencies.pixels.tolist() == [2, 2]
    assert frequencies.valid is not None
    assert frequencies.valid.tolist() == [6, 5]
    assert frequencies.images.tolist() == [1, 1]
    assert frequencies.image_pixels.tolist() == [6, 5]
    assert frequencies.ignored == 1
    assert frequencies.share.tolist() == [2 / 6, 2 / 5]
    assert frequencies.imbalance_ratio == 2.0  # cracks: 4 pixels of no for 2 of yes


def test_a_missing_file_is_an_absent_class_only_if_the_configuration_says_so(
    write: Callable[..., None], config: Callable[..., DataConfig]
) -> None:
    write(crack=CRACK)
    with pytest.raises(DataError, match=r"no mask of stain \(.*stain.*a\.png\).*missing: absent"):
        target(config())
    assert target(config(missing="absent")) == [CRACK, [[0] * 3] * 2]


def test_an_image_without_any_file_holds_no_class(
    write: Callable[..., None], config: Callable[..., DataConfig]
) -> None:
    write()
    assert target(config(missing="absent")) == [[[0] * 3] * 2] * 2


def test_the_pattern_says_where_files_are(save: Save, config: Callable[..., DataConfig]) -> None:
    save("images/train/site/b.png", np.zeros((2, 3, 3), np.uint8))
    for label, mask in (("crack", CRACK), ("stain", STAIN)):
        save(f"labels/train/site/b_{label}.png", np.asarray(mask, np.uint8))
    data = config(pattern="labels/{split}/{name}_{class}.png")
    assert target(data) == [CRACK, STAIN]
    assert [sample.name for sample in find_samples(data, "train").samples] == ["site/b"]


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("masks/{name}.png", "must hold"), ("{class}/{name}/{stem}", "nothing else"), ("{class}/{name", "no pattern")],
)
def test_a_pattern_that_names_no_file_is_refused(config: Callable[..., DataConfig], pattern: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        config(pattern=pattern)


def test_values_without_a_meaning_are_errors_that_say_what_to_write(
    write: Callable[..., None], config: Callable[..., DataConfig]
) -> None:
    full = (255 * np.asarray(CRACK)).tolist()
    write(crack=full, stain=np.zeros((2, 3)))
    with pytest.raises(DataError, match=r"255 \(2 pixels\).*such as \{0: none, 255: present\}"):
        target(config(values={0: "none", 1: "present"}))
    assert target(config(values={0: "none", 255: "present"}))[0] == CRACK
    with pytest.raises(ValueError, match="must be present"):
        config(values={0: "none"})


def test_masks_of_different_sizes_are_told(
    write: Callable[..., None], save: Save, config: Callable[..., DataConfig]
) -> None:
    write(crack=CRACK, stain=[[0, 1]])
    with pytest.raises(DataError, match=r"stain.*the mask is 2x1, its image 3x2"):
        target(config())


def test_one_class_for_each_pixel_needs_files_that_do_not_overlap(
    write: Callable[..., None], config: Callable[..., DataConfig]
) -> None:
    write(crack=[[1, 0, 0], [0, 0, 0]], stain=[[0, 1, 0], [0, 0, 255]])
    exclusive = {"labels": "exclusive", "classes": ("plate", "crack", "stain"), "unlabeled": "plate"}
    assert target(config(**exclusive)) == [[1, 2, 0], [0, 0, 255]]
    assert target(config(**exclusive | {"unlabeled": "ignore", "classes": ("crack", "stain")})) == [
        [0, 1, 255],
        [255, 255, 255],
    ]
    with pytest.raises(DataError, match="pixels of a are in no class's mask"):
        target(config(labels="exclusive", classes=("crack", "stain")))


def test_an_overlap_is_an_error_or_goes_by_the_order_of_the_classes(
    write: Callable[..., None], config: Callable[..., DataConfig]
) -> None:
    write(crack=CRACK, stain=STAIN)
    exclusive = {"labels": "exclusive", "unlabeled": "ignore"}
    with pytest.raises(
        DataError, match=r"1 pixels are in the masks of several classes \(row 0, column 1: crack, stain"
    ):
        target(config(**exclusive))
    assert target(config(**exclusive, overlap="first"))[0] == [0, 0, 1]
    assert target(config(**exclusive, overlap="last"))[0] == [0, 1, 1]


@pytest.mark.parametrize("key", [{"overlap": "first"}, {"unlabeled": "ignore"}])
def test_overlapping_classes_have_no_order_and_no_rest(config: Callable[..., DataConfig], key: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"mask_per_class.{next(iter(key))} makes one class of each pixel"):
        config(**key)


def test_the_scan_remembers_all_files_of_a_sample(
    write: Callable[..., None], save: Save, config: Callable[..., DataConfig]
) -> None:
    write(crack=CRACK, stain=STAIN)
    data = config()
    assert check_split(data, "train").num_read == 1
    assert check_split(data, "train").num_read == 0
    path = save("masks/stain/train/a.png", np.asarray(CRACK, np.uint8))
    os.utime(path, ns=(1, 1))
    again = check_split(data, "train")
    assert again.num_read == 1
    assert again.frequencies.valid is not None
    assert again.frequencies.valid.tolist() == [6, 6]


def test_another_meaning_of_the_values_is_another_scan(
    write: Callable[..., None], config: Callable[..., DataConfig]
) -> None:
    write(crack=CRACK, stain=STAIN)
    assert scan_frequencies(config()).pixels.tolist() == [2, 2]
    swapped = config(values={0: "present", 1: "none", 255: "ignore"})
    assert scan_frequencies(swapped).pixels.tolist() == [4, 3]


def test_the_section_belongs_to_the_layout(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="belongs to layout: mask_per_class"):
        DataConfig.model_validate(
            {"root": str(tmp_path), "classes": ["a", "b"], "mask_per_class": {"missing": "absent"}}
        )


def test_a_class_of_the_rest_must_exist(config: Callable[..., DataConfig]) -> None:
    with pytest.raises((ConfigError, ValueError), match=r"mask_per_class\.unlabeled: 'plat' is not a class"):
        config(labels="exclusive", unlabeled="plat")


def test_lists_with_one_mask_for_each_image_are_not_made_of_it(
    write: Callable[..., None], config: Callable[..., DataConfig]
) -> None:
    write(crack=CRACK, stain=STAIN)
    with pytest.raises(ConfigError, match="not one mask file for each image"):
        gather(config(), ["train"])
