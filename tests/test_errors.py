"""The phrases that messages share."""

from __future__ import annotations

import pytest

from segtrain.errors import MAX_LINES, listing, some, suggest


@pytest.mark.parametrize(
    ("word", "meant"),
    [("crak", "crack"), ("Cosine", "cosine"), ("--batchsize", "--batch-size"), ("BATCH-SIZE", "--batch-size")],
)
def test_the_closest_name_is_suggested_as_it_is_written(word: str, meant: str) -> None:
    assert suggest(word, ["crack", "cosine", "--batch-size"]) == f"; did you mean {meant!r}?"


def test_nothing_is_suggested_where_nothing_is_close() -> None:
    assert suggest("xyzzy", ["crack", "cosine"]) == ""
    assert suggest("crack", []) == ""


def test_long_lists_are_cut_and_counted() -> None:
    assert some(["a", "b"], limit=2) == "a, b"
    assert some([1, 2, 3, 4], limit=2) == "1, 2 and 2 more"
    assert listing("head", ["a"]) == "head\n  a"
    lines = listing("head", range(MAX_LINES + 3)).splitlines()
    assert len(lines) == MAX_LINES + 2
    assert lines[-1] == "  ... and 3 more"
