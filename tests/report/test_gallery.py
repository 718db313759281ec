"""The worst images come first, and the page shows them safely wherever it lies."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from segtrain.config import Config, parse_config
from segtrain.data.dataset import EvalDataset
from segtrain.data.formats import find_samples
from segtrain.drawing import ERROR_COLORS
from segtrain.errors import ConfigError, DataError
from segtrain.report.gallery import describe, write_gallery
from segtrain.report.worst import Worst, choose_classes, find_worst, present_classes

NAMES = ("ground", "crack", "stain", "<b>bold</b> & co")


class ByColor(nn.Module):
    """Predicts class 1 where the image is red, 2 where it is green, else 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        ground = torch.full_like(images[:, :1], 0.5)
        return torch.cat([ground, images[:, :2], ground - 9], dim=1) * self.weight


def scaled(images: Tensor) -> Tensor:
    return images.float() / 255


def add_scene(root: Path, name: str, *, target: Any, red: slice) -> None:
    """Write an image that is red in the columns `red`, and its mask."""
    image = np.zeros((*target.shape, 3), np.uint8)
    image[:, red, 0] = 255
    for kind, content in (("images", image), ("masks", target)):
        path = root / kind / "val" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(path)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Five images: crack found whole, half, not at all (twice, equally), and one without a crack."""
    target = np.zeros((8, 10), np.uint8)
    target[:, 2:6] = 1
    for name, red in (("whole", slice(2, 6)), ("half", slice(2, 4)), ("sub/none b", slice(0)), ("none#a", slice(0))):
        add_scene(tmp_path, name, target=target, red=red)
    add_scene(tmp_path, "clean", target=np.zeros_like(target), red=slice(5))
    data = {"root": str(tmp_path), "classes": list(NAMES), "workers": 0}
    return parse_config({"name": "run <1>", "data": data, "train": {"steps": 1}} | {"name": "run-1"})


def worst_of(config: Config, classes: tuple[int, ...] = (1,), num_worst: int = 20) -> tuple[Worst, EvalDataset]:
    data = EvalDataset(find_samples(config.data, "val").samples, config.data)
    found = find_worst(
        config,
        model=ByColor(),
        normalize=scaled,
        data=data,
        split="val",
        classes=classes,
        num_worst=num_worst,
        show_progress=False,
    )
    return found, data


def test_worst_images_come_first_invented_ones_among_them_ties_by_wrong_pixels_and_name(config: Config) -> None:
    worst, _ = worst_of(config)
    assert [(image.name, image.iou) for image in worst.images] == [
        ("clean", 0.0),
        ("none#a", 0.0),
        ("sub/none b", 0.0),
        ("half", 0.5),
        ("whole", 1.0),
    ]
    assert [image.num_wrong for image in worst.images] == [40, 32, 32, 16, 0]
    assert [image.invented for image in worst.images] == [("crack",), (), (), (), ()]
    assert (worst.num_concerned, worst.num_images) == (5, 5)
    # 4 + 2 columns of 8 pixels hit, 16 in the targets, 5 columns invented in `clean`.
    assert worst.split_iou == {"crack": pytest.approx(6 / 21)}


def test_no_more_are_kept_than_asked_for_and_predictions_survive(config: Config) -> None:
    worst, _ = worst_of(config, num_worst=4)
    assert [image.name for image in worst.images] == ["clean", "none#a", "sub/none b", "half"]
    assert worst.num_concerned == 5
    assert worst.images[3].prediction[:, 2:6].tolist() == [[1, 1, 0, 0]] * 8


def test_iou_of_several_classes_is_the_mean_of_those_the_image_holds(config: Config) -> None:
    worst, _ = worst_of(config, classes=(0, 1, 2))
    half = next(image for image in worst.images if image.name == "half")
    assert half.class_iou == {"ground": pytest.approx(6 / 8), "crack": 0.5}
    assert half.iou == pytest.approx((6 / 8 + 0.5) / 2)
    assert worst.num_concerned == 5


def test_no_image_with_the_class_is_a_clear_error(config: Config) -> None:
    with pytest.raises(DataError, match="no image of split 'val' holds stain, or was predicted to"):
        worst_of(config, classes=(2,))


def test_classes_are_named_or_the_rarest() -> None:
    choose = {"names": NAMES, "pixels": [90, 2, 5, 1], "tail_fraction": 0.5}
    assert choose_classes(None, **choose) == (3, 1)
    assert choose_classes(" stain, crack,stain ", **choose) == (2, 1)
    assert choose_classes("a,b", ["a,b", "a"], pixels=[1, 1], tail_fraction=0.5) == (0,)
    with pytest.raises(ConfigError, match=r"'crak' is not a class; classes: .*; did you mean 'crack'"):
        choose_classes("crak", **choose)
    with pytest.raises(ConfigError, match="names no class"):
        choose_classes(" , ", **choose)


def test_rare_classes_that_the_split_lacks_give_way_to_the_rarest_it_holds() -> None:
    choose = {"pixels": [90, 2, 5, 0], "tail_fraction": 0.5}
    assert present_classes((1, 2), split_pixels=[9, 0, 1, 0], **choose) == (1, 2)
    assert present_classes((1,), split_pixels=[9, 0, 1, 0], **choose) == (2,)
    assert present_classes((1,), split_pixels=[0, 0, 0, 3], **choose) == (3,)


class Links(HTMLParser):
    """Collects links, pictures with their texts, and tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.alts: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for key, value in attrs:
            if key in ("href", "src"):
                self.links.append(value or "")
            if key == "alt":
                self.alts.append(value or "")


def write(config: Config, out: Path, **options: Any) -> Path:
    worst, data = worst_of(config, **options)
    return write_gallery(worst, out, data=data, config=config, checkpoint=Path("runs/<i>x</i>/best.pt"), step=7)


def test_page_links_only_to_files_beside_it(config: Config, tmp_path: Path) -> None:
    page = write(config, tmp_path / "out")
    found = Links(page.read_text(encoding="utf-8"))
    assert len(found.links) == 10
    assert all((page.parent / unquote(link)).is_file() for link in found.links)
    assert not any(re.match(r"[a-z]+:|/", link) for link in found.links)
    assert len(found.alts) == 5
    assert "clean" in found.alts[0]
    assert "crack 0.000 (invented)" in found.alts[0]
    assert "crack 0.000" in found.alts[1]
    assert "invented" not in found.alts[1]


def test_names_are_text_never_markup(config: Config, tmp_path: Path) -> None:
    text = write(config, tmp_path / "out", classes=(1, 3)).read_text(encoding="utf-8")
    assert not {"b", "i"} & (Links(text).tags - {"b"})
    assert "<b>bold" not in text
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; co" in text
    assert "<i>x" not in text


def test_hundreds_of_classes_are_named_in_the_table_and_not_in_headings(config: Config, tmp_path: Path) -> None:
    found, data = worst_of(config, num_worst=1)
    ious = {f"c{number}": 0.0 for number in range(300)}
    image = replace(found.images[0], class_iou=ious, invented=())
    many = replace(found, images=[image], class_names=tuple(ious), split_iou=ious)
    page = write_gallery(many, tmp_path / "out", data=data, config=config, checkpoint=Path("best.pt"), step=1)
    text = page.read_text(encoding="utf-8")
    assert "<h1>run-1: where c0, c1, c2, c3, c4, c5, c6, c7, c8, c9 and 290 more fare worst</h1>" in text
    assert '<th scope="row">c299</th>' in text
    assert describe(image).endswith(", c9 0.000 and 290 more · mean 0.000")


def test_panels_of_an_earlier_page_are_removed_and_other_files_left(config: Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(config, out)
    (out / "panels" / "mine.png").write_bytes(b"kept")
    write(config, out, num_worst=1)
    assert sorted(path.name for path in (out / "panels").iterdir()) == ["001_clean.png", "mine.png"]
    assert [entry["name"] for entry in json.loads((out / "panels.json").read_text())["panels"]] == ["clean"]


@pytest.mark.parametrize("record", ["{", "[]", '{"panels": [1]}', '{"panels": [{"name": "a"}]}'])
def test_a_damaged_record_deletes_nothing_and_is_told(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], record: str
) -> None:
    out = tmp_path / "out"
    write(config, out)
    (out / "panels.json").write_text(record)
    write(config, out, num_worst=1)
    assert len(list((out / "panels").iterdir())) == 5
    assert "panels.json is damaged" in capsys.readouterr().err
    assert len(json.loads((out / "panels.json").read_text())["panels"]) == 1


def test_panels_show_misses_in_their_colour(config: Config, tmp_path: Path) -> None:
    page = write(config, tmp_path / "out", num_worst=2)
    for file, code in (("001_clean.png", 2), ("002_none_a.png", 3)):
        picture = np.asarray(Image.open(page.parent / "panels" / file))
        assert int((picture == ERROR_COLORS[code]).all(axis=2).sum()) > 1000


@pytest.mark.browser
@pytest.mark.parametrize("width", [420, 1400])
def test_page_renders_in_a_browser(config: Config, tmp_path: Path, width: int) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium found; install it to run browser tests")
    page = write(config, tmp_path / "out")
    shot = tmp_path / "shot.png"
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width},1600", f"--screenshot={shot}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    picture = np.asarray(Image.open(shot).convert("RGB"))
    assert picture.shape[1] == width
    distance = np.abs(picture.astype(int) - np.array(ERROR_COLORS[3])).sum(axis=2)
    assert int((distance < 30).sum()) > 200
