"""Samples are found in folders and lists, and everything that does not fit is listed at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from pydantic import ValidationError

from segtrain.config.cityscapes import EVALUATED
from segtrain.config.data import DataConfig
from segtrain.data.formats import FORMATS, find_samples, image_folder
from segtrain.data.frequencies import check_split
from segtrain.errors import MAX_LINES, DataError
from segtrain.report.scan import summary_lines

Make = Callable[..., DataConfig]
Save = Callable[..., Path]
DOT = np.zeros((4, 4), np.uint8)


def test_the_layouts_are_those_of_the_schema() -> None:
    assert set(FORMATS) == set(get_args(DataConfig.model_fields["layout"].annotation))


def test_folders_are_paired_by_stem_in_any_mix_of_kinds(data_config: Make, save: Save) -> None:
    for image, mask in (("b.jpg", "b.PNG"), ("deep/er/a.TIF", "deep/er/a.bmp"), ("deep/c.webp", "deep/c.tiff")):
        save(f"images/train/{image}", DOT)
        save(f"masks/train/{mask}", DOT)
    save("masks/train/unused.png", DOT)
    (samples := find_samples(data_config(), "train").samples).sort(key=lambda sample: sample.name)
    assert [sample.name for sample in samples] == ["b", "deep/c", "deep/er/a"]
    assert [sample.image.suffix for sample in samples] == [".jpg", ".webp", ".TIF"]
    assert all(sample.mask is not None and sample.mask.is_file() for sample in samples)


def test_order_does_not_depend_on_the_file_system(data_config: Make, save: Save) -> None:
    for name in ("c", "a", "b"):
        save(f"images/train/{name}.png", DOT)
        save(f"masks/train/{name}.png", DOT)
    assert [sample.name for sample in find_samples(data_config(), "train").samples] == ["a", "b", "c"]


def test_names_with_dots_keep_all_but_the_suffix(data_config: Make, save: Save) -> None:
    for name in ("scene.v1", "scene.v2"):
        save(f"images/train/{name}.png", DOT)
        save(f"masks/train/{name}.png", DOT)
    assert [sample.name for sample in find_samples(data_config(), "train").samples] == ["scene.v1", "scene.v2"]


def test_hidden_files_and_other_files_are_passed_over(data_config: Make, save: Save, tmp_path: Path) -> None:
    save("images/train/a.png", DOT)
    save("masks/train/a.png", DOT)
    (tmp_path / "images/train/Thumbs.db").write_bytes(b"x")
    (tmp_path / "images/train/._a.png").write_bytes(b"x")
    assert len(find_samples(data_config(), "train").samples) == 1


def test_linked_folders_are_followed_and_loops_end(data_config: Make, save: Save, tmp_path: Path) -> None:
    save("elsewhere/a.png", DOT)
    save("masks/train/linked/a.png", DOT)
    (tmp_path / "images/train").mkdir(parents=True)
    (tmp_path / "images/train/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "images")
    assert [sample.name for sample in find_samples(data_config(), "train").samples] == ["linked/a"]


def test_masks_may_lie_beside_their_images_with_an_end_of_their_own(data_config: Make, save: Save) -> None:
    for name in ("train/a.jpg", "train/a_mask.png", "train/b.jpg", "train/b_mask.png", "train/c.jpg"):
        save(name, DOT)
    config = data_config(images="{split}", masks="{split}", mask_end="_mask")
    found = find_samples(config, "train")
    assert [(sample.name, sample.mask.name) for sample in found.samples if sample.mask] == [
        ("a", "a_mask.png"),
        ("b", "b_mask.png"),
    ]
    (problem,) = found.problems
    assert "train/c_mask.png" in problem.reason
    with pytest.raises(DataError, match=r"holds images and masks: data\.mask_end tells them apart"):
        find_samples(data_config(images="{split}", masks="{split}"), "train")


def test_missing_masks_and_double_stems_are_listed_together(data_config: Make, save: Save) -> None:
    for name in ("images/train/alone.png", "images/train/two.png", "images/train/two.jpg", "images/train/three.png"):
        save(name, DOT)
    for name in ("masks/train/two.png", "masks/train/three.png", "masks/train/three.tif"):
        save(name, DOT)
    with pytest.raises(DataError) as caught:
        check_split(data_config(), "train", cache=False, show_progress=False)
    message = str(caught.value)
    assert "3 bad files" in message
    assert "alone.png: no mask: expected" in message
    assert "the same stem twice: two.jpg, two.png" in message
    assert "two masks for one image: three.png, three.tif" in message


def test_skip_leaves_them_out_and_counts_them(data_config: Make, save: Save) -> None:
    save("images/train/alone.png", DOT)
    save("images/train/good.png", DOT)
    save("masks/train/good.png", DOT)
    config = data_config(on_bad="skip")
    assert [sample.name for sample in find_samples(config, "train").samples] == ["good"]
    assert len(find_samples(config, "train").problems) == 1


def test_skip_with_nothing_left_is_an_error(data_config: Make, save: Save, tmp_path: Path) -> None:
    save("images/train/alone.png", DOT)
    (tmp_path / "masks/train").mkdir(parents=True)
    with pytest.raises(DataError, match="nothing is left"):
        check_split(data_config(on_bad="skip"), "train", cache=False, show_progress=False)


def test_long_lists_of_problems_are_cut_with_their_number(data_config: Make, tmp_path: Path) -> None:
    (tmp_path / "images/train").mkdir(parents=True)
    (tmp_path / "masks/train").mkdir(parents=True)
    for number in range(30):
        (tmp_path / f"images/train/{number:02}.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        check_split(data_config(), "train", cache=False, show_progress=False)
    assert len(str(caught.value).splitlines()) == MAX_LINES + 2
    assert str(caught.value).endswith("... and 10 more")
    assert "30 bad files" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ([], r"no folder .*images/train \(data.root / data.images / data.splits.train\)"),
        (["images/train"], r"no folder .*masks/train"),
        (["images/train", "masks/train"], r"no images in .*looked for .png"),
    ],
)
def test_missing_folders_are_named(data_config: Make, tmp_path: Path, make: list[str], message: str) -> None:
    for folder in make:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(DataError, match=message):
        find_samples(data_config(), "train")


def test_a_missing_root_and_an_unknown_split_are_named(data_config: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.root: no folder"):
        find_samples(data_config(root=str(tmp_path / "nowhere")), "train")
    with pytest.raises(DataError, match="no 'trian'; it has: train, val, test"):
        find_samples(data_config(), "trian")


# --- lists


def lists(make: Make, tmp_path: Path, text: str, **changes: str) -> DataConfig:
    (tmp_path / "train.txt").write_text(text, encoding="utf-8")
    return make(layout="lists", splits={"train": "train.txt", "val": "val.txt"}, **changes)


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", ", "   "])
def test_lists_name_pairs(data_config: Make, save: Save, tmp_path: Path, separator: str) -> None:
    save("x/b.png", DOT), save("y/b_mask.png", DOT), save("x/a.jpg", DOT), save("y/a_mask.png", DOT)
    text = f"\ufeff# pairs\n\nx/b.png{separator}y/b_mask.png\nx/a.jpg{separator}y/a_mask.png\n"
    samples = find_samples(lists(data_config, tmp_path, text), "train").samples
    assert [sample.name for sample in samples] == ["x/b", "x/a"]
    assert samples[0].mask == tmp_path / "y/b_mask.png"


def test_lists_take_blanks_in_names_with_a_tab_and_absolute_paths(
    data_config: Make, save: Save, tmp_path: Path
) -> None:
    image, mask = save("my photo.png", DOT), save("my mask.png", DOT)
    samples = find_samples(lists(data_config, tmp_path, f"{image}\tmy mask.png\n"), "train").samples
    assert (samples[0].image, samples[0].mask) == (image, mask)


def test_lists_tell_lines_of_missing_files_and_repeats(data_config: Make, save: Save, tmp_path: Path) -> None:
    save("a.png", DOT), save("m.png", DOT)
    text = "a.png m.png\nnone.png m.png\nb.png m.png\na.png m.png\n"
    save("b.png", DOT)
    with pytest.raises(DataError) as caught:
        check_split(lists(data_config, tmp_path, text + "c.png gone.png"), "train", cache=False, show_progress=False)
    message = str(caught.value)
    assert "none.png: no such image (line 2" in message
    assert "lines 1 and 4 name the same sample: a" in message
    assert "3 bad files" in message


def test_all_malformed_lines_of_a_list_are_told_at_once(data_config: Make, tmp_path: Path) -> None:
    text = "a.png\na.png b.png\na b c\n" + "x\n" * 30
    with pytest.raises(
        DataError, match=r"lines that do not fit: 32\n  line 1: 'a\.png'\n  line 3: 'a b c'\n"
    ) as caught:
        find_samples(lists(data_config, tmp_path, text), "train")
    assert str(caught.value).endswith("... and 12 more")


def test_masks_without_an_image_are_no_error_but_known(data_config: Make, save: Save, tmp_path: Path) -> None:
    for name in ("images/train/a.png", "masks/train/a.png", "masks/train/deep/b.png"):
        save(name, DOT)
    result = check_split(data_config(), "train", cache=False, show_progress=False)
    assert (result.names, result.problems) == (["a"], [])
    assert result.unused_masks == [tmp_path / "masks/train/deep/b.png"]
    assert summary_lines(result, data_config().class_names)[-2:] == [
        "masks without an image, not used: 1",
        f"  {tmp_path / 'masks/train/deep/b.png'}",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a.png\n", "lines that do not fit: 1\n  line 1: 'a.png'"), ("# nothing\n", "names no samples")],
)
def test_broken_lists_are_told(data_config: Make, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_samples(lists(data_config, tmp_path, text), "train")


def test_a_missing_list_is_told(data_config: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the list .*val.txt cannot be read"):
        find_samples(lists(data_config, tmp_path, ""), "val")


@pytest.mark.parametrize("key", ["images", "masks"])
def test_folder_keys_are_not_ignored_with_lists(data_config: Make, key: str) -> None:
    with pytest.raises(ValidationError, match=rf"{key}: belongs to layout: folders.*, and the layout is lists"):
        data_config(layout="lists", **{key: "photos"})


def test_the_images_of_a_split_lie_below_a_folder_where_the_layout_has_one(tmp_path: Path) -> None:
    sections: dict[str, dict[str, Any]] = {
        "coco": {"coco": {"unlabeled": "a", "images": {"train": "photos"}}},
        "folders": {"images": "{split}/images"},
        "cityscapes": {"classes": EVALUATED},
    }
    found = {}
    for layout in FORMATS:
        plain = {"root": str(tmp_path), "layout": layout, "classes": ["a", "b"], "splits": {"train": "part"}}
        data = DataConfig.model_validate(plain | sections.get(layout, {}))
        place = image_folder(data, "train")
        found[layout] = None if place is None else place.relative_to(tmp_path).as_posix()
    assert found == {
        "folders": "part/images",
        "mask_per_class": "images/part",
        "cityscapes": "leftImg8bit/part",
        "voc": "JPEGImages",
        "ade20k": "images/part",
        "cvat": "JPEGImages",
        "coco": "photos",
        "lists": None,
        "table": None,
        "shards": None,
    }
