"""Masks for files: own names, own sizes, nothing overwritten, nothing silently left out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from segtrain.config import Config, parse_config
from segtrain.engine.predict import Predictor
from segtrain.engine.predict_files import check_outputs, find_images, write_predictions
from segtrain.errors import DataError


class LastIfBright(nn.Module):
    """The last class where the image is bright, else class 0."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), self.num_classes, *images.shape[2:]) - 9
        logits[:, 0] = 0.5
        logits[:, -1] = images[:, 0] * self.weight
        return logits


def scaled(images: Tensor) -> Tensor:
    return images.float() / 255


def config_of(num_classes: int = 3, **data: Any) -> Config:
    classes = [f"class {index}" for index in range(num_classes)]
    section = {"root": "nowhere", "classes": classes, "ignore_index": 255 if num_classes <= 255 else -1, **data}
    return parse_config({"name": "test", "data": section, "train": {"steps": 1}})


def add_image(path: Path, size: tuple[int, int] = (6, 8), **options: Any) -> None:
    """Write an image [H, W] whose right half is bright."""
    image = np.zeros((*size, 3), np.uint8)
    image[:, size[1] // 2 :] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)


def load(path: Path) -> Image.Image:
    """Return a picture whose file is closed again."""
    with Image.open(path) as picture:
        picture.load()
        return picture


def predict(paths: list[Path], out: Path, config: Config | None = None) -> int:
    config = config or config_of()
    predictor = Predictor(LastIfBright(len(config.data.classes)), scaled, batch_size=2)
    sources = find_images(paths, out=out)
    return write_predictions(sources, out, config=config, predictor=predictor, checkpoint=Path("best.pt"))


def test_three_files_for_each_image_at_its_own_size_and_name(tmp_path: Path) -> None:
    sizes = {"a.v1": (6, 8), "deep/b": (6, 8), "deep/c": (5, 4)}
    for name, size in sizes.items():
        add_image(tmp_path / "in" / f"{name}.png", size)
    out = tmp_path / "out"
    assert predict([tmp_path / "in"], out) == 3
    for name, (height, width) in sizes.items():
        index, painted = load(out / "index" / f"{name}.png"), load(out / "palette" / f"{name}.png")
        mixed = load(out / "overlay" / f"{name}.jpg")
        assert (index.mode, painted.mode, mixed.mode) == ("L", "P", "RGB")
        assert index.size == painted.size == mixed.size == (width, height)
        expected = np.zeros((height, width), np.uint8)
        expected[:, width // 2 :] = 2
        assert np.array_equal(np.asarray(index), expected)
        assert np.array_equal(np.asarray(painted), expected)
    assert not [path for path in out.rglob("*") if path.suffix == ".tmp"]


def test_classes_and_manifest_tell_what_the_files_are(tmp_path: Path) -> None:
    add_image(tmp_path / "a.png")
    out = tmp_path / "out"
    predict([tmp_path / "a.png"], out, config_of(label_map={0: 0, 100: 2, 255: "ignore"}))
    classes = json.loads((out / "classes.json").read_text())
    assert [entry["id"] for entry in classes["classes"]] == [0, 1, 2]
    assert "numbers used in training" in classes["note"]
    assert classes["label_map"] == {"0": 0, "100": 2, "255": "ignore"}
    palette = load(out / "palette" / "a.png").convert("RGB")
    assert list(palette.getpixel((7, 0))) == classes["classes"][2]["color"]
    (entry,) = json.loads((out / "manifest.json").read_text())["images"]
    assert entry["sha256"] == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert (entry["height"], entry["width"]) == (6, 8)
    assert (out / entry["index"]).is_file()


def test_more_than_256_classes_are_written_with_16_bits(tmp_path: Path) -> None:
    add_image(tmp_path / "a.png")
    predict([tmp_path / "a.png"], tmp_path / "out", config_of(300))
    index = np.asarray(load(tmp_path / "out" / "index" / "a.png"))
    assert sorted(np.unique(index).tolist()) == [0, 299]
    assert load(tmp_path / "out" / "palette" / "a.png").mode == "RGB"


def test_input_size_changes_the_models_view_not_the_files_size(tmp_path: Path) -> None:
    add_image(tmp_path / "a.png", (40, 60))
    predict([tmp_path / "a.png"], tmp_path / "out", config_of(input_size=[20, 30]))
    index = np.asarray(load(tmp_path / "out" / "index" / "a.png"))
    assert index.shape == (40, 60)
    assert (index[:, :28] == 0).all()
    assert (index[:, 32:] == 2).all()


def test_rotated_photographs_keep_their_stored_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    add_image(tmp_path / "a.jpg", (6, 8), exif=exif)
    predict([tmp_path / "a.jpg"], tmp_path / "out")
    assert load(tmp_path / "out" / "index" / "a.png").size == (8, 6)
    assert load(tmp_path / "out" / "overlay" / "a.jpg").getexif().get(0x0112, 1) == 1


def test_existing_files_are_all_named_before_anything_is_written(tmp_path: Path) -> None:
    for name in ("a", "b"):
        add_image(tmp_path / "in" / f"{name}.png")
    out = tmp_path / "out"
    for file in ("index/a.png", "overlay/b.jpg"):
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (out / file).write_text("mine")
    with pytest.raises(DataError, match=r"files that exist in .*: 2;.*--overwrite(.|\n)*index/a.png(.|\n)*b.jpg"):
        check_outputs(find_images([tmp_path / "in"], out=out), out)
    (out / "index" / "a.png").unlink()
    (out / "overlay" / "b.jpg").rename(out / "classes.json")
    with pytest.raises(DataError, match=r"classes\.json"):
        check_outputs(find_images([tmp_path / "in"], out=out), out)


def test_unreadable_images_are_told_at_the_end_and_the_others_written(tmp_path: Path) -> None:
    for name in ("a", "c", "d"):
        add_image(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "b.jpg").write_text("no image")
    whole = (tmp_path / "in" / "d.png").read_bytes()
    (tmp_path / "in" / "d.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"or predicted: 2; the other 2 were written(.|\n)*b\.jpg(.|\n)*d\.png"):
        predict([tmp_path / "in"], tmp_path / "out")
    assert sorted(path.stem for path in (tmp_path / "out" / "index").iterdir()) == ["a", "c"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [entry["name"] for entry in manifest["images"]] == ["a", "c"]


def test_one_name_for_two_images_is_refused(tmp_path: Path) -> None:
    add_image(tmp_path / "in" / "a.png")
    add_image(tmp_path / "in" / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.png"):
        find_images([tmp_path / "in"], out=tmp_path / "out")
    add_image(tmp_path / "other" / "a.png")
    with pytest.raises(DataError, match="two images"):
        find_images([tmp_path / "in" / "a.png", tmp_path / "other"], out=tmp_path / "out")


def test_an_image_given_twice_is_predicted_once(tmp_path: Path) -> None:
    add_image(tmp_path / "in" / "a.png")
    found = find_images([tmp_path / "in", tmp_path / "in" / "a.png"], out=tmp_path / "out")
    assert [source.name for source in found] == ["a"]


def test_own_outputs_and_hidden_files_are_no_inputs(tmp_path: Path) -> None:
    for name in ("a.png", "masks/index/a.png", ".hidden.png", ".cache/b.png", "notes.txt"):
        add_image(tmp_path / name) if name.endswith("png") else (tmp_path / name).write_text("x")
    found = find_images([tmp_path], out=tmp_path / "masks")
    assert [source.name for source in found] == ["a"]


@pytest.mark.parametrize("out", [".", "deep", ".."])
def test_a_second_run_never_takes_the_outputs_of_the_first_for_images(tmp_path: Path, out: str) -> None:
    for name in ("a.png", "deep/b.png"):
        add_image(tmp_path / "in" / name)
    for _ in range(2):
        assert predict([tmp_path / "in"], tmp_path / "in" / out) == 2


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    add_image(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    found = find_images([tmp_path / "in"], out=tmp_path / "out")
    assert [source.name for source in found] == ["linked/a"]


def test_nothing_to_predict_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in this folder"):
        find_images([tmp_path / "empty"], out=tmp_path / "out")
    with pytest.raises(DataError, match="no such file or folder"):
        find_images([tmp_path / "nowhere"], out=tmp_path / "out")
