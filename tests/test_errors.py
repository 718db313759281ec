"""The phrases that messages share."""

from __future__ import annotations

import pytest

from segtrain.errors import MAX_LINES, listing, natural_key, nearest, some, suggest


@pytest.mark.parametrize(
    ("word", "meant"),
    [("crak", "crack"), ("Cosine", "cosine"), ("--batchsize", "--batch-size"), ("BATCH-SIZE", "--batch-size")],
)
def test_the_closest_name_is_suggested_as_it_is_written(word: str, meant: str) -> None:
    assert suggest(word, ["crack", "cosine", "--batch-size"]) == f"; did you mean {meant!r}?"


def test_nothing_is_suggested_where_nothing_is_close() -> None:
    assert suggest("xyzzy", ["crack", "cosine"]) == ""
    assert suggest("crack", []) == ""


def test_equally_close_names_come_in_the_order_in_which_people_count() -> None:
    names = ["resnet152", "resnet50", "vgg11", "resnet9", "resnet34", "ResNet-18"]
    assert suggest("resnet", ["resnet50", "resnet34", "resnet18"]) == "; did you mean 'resnet18'?"
    assert nearest("resnet", names, limit=4) == ["resnet9", "resnet34", "resnet50", "resnet152"]
    assert sorted(["b2", "10a", "b10", "9a", ""], key=natural_key) == ["", "9a", "10a", "b2", "b10"]


def test_long_lists_are_cut_and_counted() -> None:
    assert some(["a", "b"], limit=2) == "a, b"
    assert some([1, 2, 3, 4], limit=2) == "1, 2 and 2 more"
    assert listing("head", ["a"]) == "head\n  a"
    lines = listing("head", range(MAX_LINES + 3)).splitlines()
    assert len(lines) == MAX_LINES + 2
    assert lines[-1] == "  ... and 3 more"
