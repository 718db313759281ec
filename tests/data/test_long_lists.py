"""A long list gives the samples of a short one, without a look at each file; what is missing the scan reports."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segtrain.config.data import DataConfig
from segtrain.data import check_split
from segtrain.data.formats import base, find_samples, long_lists, tables
from segtrain.data.samples import Samples
from segtrain.errors import DataError

Make = Callable[..., DataConfig]


@pytest.fixture
def lists(data_config: Make, pair: Callable[..., Any], tmp_path: Path) -> Callable[..., DataConfig]:
    """Five samples in a list of this text."""
    for number in range(5):
        pair(f"{number}", np.full((4, 4), number % 3))

    def make(text: str) -> DataConfig:
        (tmp_path / "train.txt").write_text(text)
        return data_config(layout="lists", splits={"train": "train.txt"})

    return make


def text_of(separator: str, *, root: str = "") -> str:
    return "".join(
        f"{root}images/train/{number}.png{separator}{root}masks/train/{number}.png\n" for number in (3, 0, 1, 4, 2)
    )


@pytest.mark.parametrize("separator", ["\t", ",", " ", " , ", "   "])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_long_list_gives_the_samples_of_a_short_one(
    lists: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, separator: str, absolute: bool
) -> None:
    data = lists(text_of(separator, root=f"{tmp_path}/" if absolute else ""))
    with monkeypatch.context() as patch:
        patch.setattr(tables, "read_plain_list", lambda content, folder: None)
        one_by_one = list(find_samples(data, "train").samples)
    assert len(one_by_one) == 5
    for unchecked in (3, 100):
        monkeypatch.setattr(long_lists, "UNCHECKED", unchecked)
        listing = find_samples(data, "train")
        assert list(listing.samples) == one_by_one
        assert isinstance(listing.samples, Samples) == (separator != "   ")
        assert not listing.problems


def test_what_a_short_list_names_and_is_not_there_is_told_with_its_line(lists: Callable[..., DataConfig]) -> None:
    data = lists(text_of(" ") + "images/train/gone.png masks/train/gone.png\n")
    (problem,) = find_samples(data, "train").problems
    assert "no such image (line 6" in problem.reason


@pytest.mark.parametrize(
    "extra",
    [
        "# a comment\n",
        "\n",
        "images/train/0.png masks/train/0.png\n",
        "images/train/../train/0.png masks/train/0.png\n",
        "images/train/0.txt masks/train/0.png\n",
        "images/train/.png masks/train/0.png\n",
        "images/train/8.png\n",
        "images/train/8.png masks/train/8.png more\n",
        "images/train/8.png\u00a0masks/train/8.png\n",
        "/images/train/8.png masks/train/8.png\n",
        "images/train/8.png masks/train/8.png\x0bimages/train/9.png masks/train/9.png\n",
    ],
)
def test_lists_that_want_care_get_it(monkeypatch: pytest.MonkeyPatch, extra: str) -> None:
    monkeypatch.setattr(long_lists, "UNCHECKED", 3)
    assert long_lists.read_plain_list(text_of(" ").encode(), folder=Path("/data")) is not None
    assert long_lists.read_plain_list((text_of(" ") + extra).encode(), folder=Path("/data")) is None


HARMLESS = ["a", "B7", "c/d", "é", "e f", "0", ".png"]
WITH_CARE = ["\u2003", " ", ",", "\t", "/", ".", ".txt", "\r", "#", "\x1f", "\x85", "\\"]
PARTS = HARMLESS * 6 + WITH_CARE


@settings(max_examples=150, deadline=None)
@given(
    pairs=st.lists(st.tuples(*[st.lists(st.sampled_from(PARTS), max_size=2).map("".join)] * 2), min_size=1, max_size=6),
    separator=st.sampled_from(["\t", ",", " ", ", ", "\t "]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_what_is_read_as_a_plain_list_is_what_a_look_at_each_line_finds(
    pairs: list[tuple[str, str]], separator: str, end: str
) -> None:
    text = "".join(f"img{one}.png{separator}msk{two}.png{end}" for one, two in pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_lists, "UNCHECKED", 0)
        plain = long_lists.read_plain_list(text.encode(), folder=Path("/data"))
        if plain is None:
            return
        patch.setattr(Path, "is_file", lambda path: True)
        rows = tables._pairs(text, Path("list.txt"))
        found = base.pair_by_rows(rows, folder=Path("/data"), source=Path("list.txt"))
    assert list(plain) == list(found.samples)
    assert not found.problems


def test_a_part_of_a_long_list_and_what_a_worker_gets_are_the_same_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_lists, "UNCHECKED", 3)
    whole = long_lists.read_plain_list(text_of(",").encode(), folder=Path("/data"))
    assert whole is not None
    samples = list(whole)
    assert list(whole.select([4, 0])) == [samples[4], samples[0]]
    assert list(pickle.loads(pickle.dumps(whole))) == samples
    assert list(whole.column("name")) == [sample.name for sample in samples]


def test_what_a_long_list_names_and_is_not_there_is_found_by_the_scan(
    lists: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_lists, "UNCHECKED", 3)
    data = lists(text_of(" ") + "images/train/gone.png masks/train/gone.png\n")
    with pytest.raises(DataError, match=r"gone.png: cannot be read \(No such file"):
        check_split(data, "train", cache=False, show_progress=False)
    skipping = data.model_copy(update={"on_bad": "skip"})
    assert check_split(skipping, "train", cache=False, show_progress=False).frequencies.num_images == 5
