"""Splits hold every sample once, part no group, and give each split its part of every class wherever that can be."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segtrain.config.data import DataConfig
from segtrain.data.formats import find_samples
from segtrain.data.grouping import group_by, number_groups
from segtrain.data.splits import gather, list_lines, share_out, write_lists
from segtrain.data.stratify import Stock, stratify
from segtrain.errors import ConfigError, DataError, SegtrainError

THREE = {"train": 0.7, "val": 0.15, "test": 0.15}


def draw_counts(num_samples: int, num_classes: int, seed: int) -> Any:
    """Pixels int64 [N, C] of classes from common to rare; class 0 is in every image."""
    generator = np.random.default_rng(seed)
    chances = np.geomspace(1, 0.02, num_classes)
    held = generator.random((num_samples, num_classes)) < chances
    return held * generator.integers(1, 1000, held.shape)


@settings(max_examples=40, deadline=None)
@given(
    num_samples=st.integers(12, 150),
    num_classes=st.integers(1, 8),
    num_groups=st.one_of(st.none(), st.integers(4, 60)),
    fractions=st.sampled_from([THREE, {"a": 0.5, "b": 0.5}, {f"fold_{k}": 0.25 for k in range(4)}]),
    seed=st.integers(0, 1000),
)
def test_samples_come_once_groups_stay_whole_and_classes_are_everywhere_they_can_be(
    num_samples: int, num_classes: int, num_groups: int | None, fractions: dict[str, float], seed: int
) -> None:
    counts = draw_counts(num_samples, num_classes, seed)
    groups = np.arange(num_samples)
    if num_groups is not None:
        drawn = np.random.default_rng(seed).integers(0, num_groups, num_samples)
        groups = np.unique(drawn, return_inverse=True)[1]
    if groups.max() + 1 < len(fractions):
        return
    shares = share_out(counts, groups, fractions, seed=seed)
    assert shares.assigned.shape == (num_samples,)
    assert shares.num_images().sum() == num_samples
    assert (shares.num_images() > 0).all()
    for group in np.unique(groups):
        assert len(np.unique(shares.assigned[groups == group])) == 1
    holding = np.array([len(np.unique(groups[counts[:, c] > 0])) for c in range(num_classes)])
    told = " ".join(shares.gaps([f"class{c}" for c in range(num_classes)]))
    missing = shares.images() == 0
    for c in np.flatnonzero(missing.any(axis=0)):
        assert f"class{c} is not in" in told
        assert holding[c] < len(fractions) or "needed elsewhere" in told
    again = share_out(counts, groups, fractions, seed=seed)
    assert np.array_equal(shares.assigned, again.assigned)


@pytest.mark.parametrize("seed", range(4))
def test_every_split_gets_its_part_of_the_images_and_of_the_images_and_pixels_of_every_class(seed: int) -> None:
    counts = draw_counts(2500, 6, seed)
    shares = share_out(counts, np.arange(2500), THREE, seed=seed)
    wanted = np.array([0.7, 0.15, 0.15])[:, None]
    assert np.abs(shares.num_images()[:, None] / 2500 - wanted).max() < 0.01
    assert np.abs(shares.images() / shares.images().sum(axis=0) - wanted).max() < 0.04
    assert np.abs(shares.pixels() / shares.pixels().sum(axis=0) - wanted).max() < 0.04


def test_a_random_split_is_much_farther_from_what_was_asked() -> None:
    counts = draw_counts(300, 8, 0)
    stock = Stock.count(counts, np.arange(300), np.array([0.7, 0.15, 0.15]))
    ours = stratify(stock, seed=0)
    costs = []
    for generator in (np.random.default_rng(seed) for seed in range(20)):
        drawn = generator.choice(3, 300, p=[0.7, 0.15, 0.15])
        costs.append(stock.cost(np.stack([stock.shares[drawn == k].sum(axis=0) for k in range(3)])))
    mine = stock.cost(np.stack([stock.shares[ours == k].sum(axis=0) for k in range(3)]))
    assert mine < 0.25 * min(costs)


def test_a_class_of_three_images_is_in_each_of_three_splits() -> None:
    counts = np.zeros((200, 2), np.int64)
    counts[:, 0] = 100
    counts[[3, 90, 91], 1] = [500, 1, 1]
    shares = share_out(counts, np.arange(200), THREE)
    assert shares.images()[:, 1].tolist() == [1, 1, 1]
    assert shares.assigned[3] == 0  # most of its pixels go where most was asked for
    assert shares.gaps(["a", "b"]) == []


def test_a_class_that_cannot_be_everywhere_is_in_train_and_the_reason_is_told() -> None:
    counts = np.full((40, 3), 10)
    counts[:, 1:] = 0
    groups = np.arange(40) // 2
    counts[6:8, 1] = 5  # both images of one group
    shares = share_out(counts, groups, THREE)
    assert shares.images()[:, 1].tolist() == [2, 0, 0]
    assert shares.gaps(["a", "b", "c"]) == [
        "b is not in val, test: it occurs in 1 group (2 images) only, and there are 3 splits",
        "c is not in train, val, test: no image holds it",
    ]


def test_with_few_groups_the_best_assignment_is_found() -> None:
    sizes = [101, 305, 171, 124]
    groups = np.repeat(np.arange(4), sizes)
    shares = share_out(np.ones((701, 1), np.int64), groups, THREE)
    assert shares.num_images().tolist() in ([476, 101, 124], [476, 124, 101])


def test_moves_and_exchanges_cost_what_they_are_said_to() -> None:
    from segtrain.data.stratify import _Draft

    stock = Stock.count(draw_counts(60, 4, 3), np.arange(60), np.array([0.5, 0.3, 0.2]))
    draft = _Draft(stock)
    for group in range(60):
        draft._put(group, group % 3)
    everyone = np.arange(60)
    changes, before = draft._changes(everyone), draft.cost
    change, exchange = draft._best_exchange(everyone, changes, 0, 1)
    draft._put(5, 0)
    assert draft.cost - before == pytest.approx(changes[5, 0])
    draft._put(5, 2)
    for group, split in exchange:
        draft._put(group, split)
    assert draft.cost - before == pytest.approx(change)
    assert change < 0


@pytest.mark.parametrize("fractions", [{}, {"a": 1.0}, {"a": 0.5, "b": 0.6}, {"a": 1.2, "b": -0.2}])
def test_fractions_that_are_no_parts_of_a_whole_are_refused(fractions: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="each above 0 and 1 in all"):
        share_out(np.ones((9, 1), np.int64), np.arange(9), fractions)


def test_fewer_groups_than_splits_are_refused() -> None:
    with pytest.raises(DataError, match=r"3 splits need as many groups, .* found 2 groups of 4 samples"):
        share_out(np.ones((4, 1), np.int64), np.array([0, 0, 1, 1]), THREE)


NAMES = ["site_a/cam1_001", "site_a/cam2_001", "site_b/cam1_002", "003"]


def test_samples_are_grouped_by_folder_pattern_or_column() -> None:
    assert group_by("folder", NAMES, {}) == ["site_a", "site_a", "site_b", "."]
    assert group_by(r"regex:(\d)$", NAMES, {}) == ["1", "1", "2", "3"]
    assert group_by(r"regex:00\d", NAMES, {}) == ["001", "001", "002", "003"]
    assert group_by("column:place", NAMES, {"place": ["x", " x", 7, "y"]}) == ["x", "x", "7", "y"]


@pytest.mark.parametrize(
    ("rule", "columns", "message"),
    [
        ("foldr", {}, "did you mean 'folder'"),
        ("regex:", {}, "expected folder, regex:<pattern> or column:<name>"),
        ("regex:(", {}, "no regular expression"),
        ("regex:cam", {}, r"not found in 1 of 4 names.*\n  003"),
        ("column:plaec", {"place": [1, 2, 3, 4]}, "did you mean 'place'"),
        ("column:place", {}, r"only data\.layout table has columns"),
        ("column:place", {"place": [1, None, "", 4]}, "2 samples without a value"),
    ],
)
def test_a_rule_that_groups_nothing_is_refused(rule: str, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(SegtrainError, match=f"(?s){message}"):
        group_by(rule, NAMES, columns)


def test_keys_and_pairs_are_joined_into_groups() -> None:
    pair = (np.array([1]), np.array([4]))
    assert number_groups(5, keys=["a", "b", "a", "c", "d"], pairs=[pair]).tolist() == [0, 1, 0, 2, 1]
    assert number_groups(3, keys=None, pairs=[]).tolist() == [0, 1, 2]


def test_written_lists_name_each_sample_of_the_old_splits_once(
    data_config: Callable[..., DataConfig], pair: Callable[..., Any], tmp_path: Path
) -> None:
    for split in ("train", "val"):
        for number in range(6):
            pair(f"{split}/#{number} x", np.full((4, 4), number % 3), split=split)
    config = data_config(splits={"train": "train", "val": "val"})
    material = gather(config, ["train", "val"], cache=False)
    assert material.counts.shape == (12, 3)
    shares = share_out(material.counts, np.arange(12), {"train": 0.5, "val": 0.5})
    lists = {
        f"new/{name}.txt": list_lines(material.samples, shares.assigned == k, root=tmp_path)
        for k, name in enumerate(shares.names)
    }
    write_lists(config, lists, force=False)
    read = data_config(layout="lists", splits={name: f"new/{name}.txt" for name in shares.names})
    found = [sample for name in shares.names for sample in find_samples(read, name).samples]
    assert sorted((one.image, one.mask) for one in found) == sorted((one.image, one.mask) for one in material.samples)


def test_an_image_that_two_splits_list_is_shared_out_once(
    data_config: Callable[..., DataConfig], pair: Callable[..., Any], tmp_path: Path
) -> None:
    for number in range(4):
        pair(str(number), np.zeros((4, 4)))
    lines = [f"images/train/{number}.png\tmasks/train/{number}.png\n" for number in range(4)]
    (tmp_path / "a.txt").write_text("".join(lines[:3]))
    (tmp_path / "b.txt").write_text("".join(lines[1:]))
    config = data_config(layout="lists", splits={"a": "a.txt", "b": "b.txt"})
    assert list(gather(config, ["a", "b"], cache=False).samples.column("name")) == [
        f"images/train/{number}" for number in range(4)
    ]
    (tmp_path / "b.txt").write_text("images/train/0.png\tmasks/train/1.png\n")
    with pytest.raises(DataError, match="has two masks"):
        gather(config, ["a", "b"], cache=False)


def test_existing_lists_are_kept_unless_forced_and_never_half_replaced(
    data_config: Callable[..., DataConfig], tmp_path: Path
) -> None:
    config = data_config()
    (tmp_path / "train.txt").write_text("old\n")
    with pytest.raises(ConfigError, match=r"--force"):
        write_lists(config, {"val.txt": "new\n", "train.txt": "new\n"}, force=False)
    assert not (tmp_path / "val.txt").exists()
    (tmp_path / "taken").write_text("a file where a folder is to be")
    with pytest.raises(SegtrainError):
        write_lists(config, {"train.txt": "new\n", "val.txt": "new\n", "taken/test.txt": "new\n"}, force=True)
    assert (tmp_path / "train.txt").read_text() == "old\n"
    assert not (tmp_path / "val.txt").exists()
    write_lists(config, {"train.txt": "new\n"}, force=True)
    assert (tmp_path / "train.txt").read_text() == "new\n"


def test_a_name_that_a_list_cannot_hold_is_refused(
    data_config: Callable[..., DataConfig], pair: Callable[..., Any], tmp_path: Path
) -> None:
    pair("a\tb", np.zeros((4, 4)))
    material = gather(data_config(), ["train"], cache=False)
    with pytest.raises(DataError, match="cannot stand in a list"):
        list_lines(material.samples, np.ones(1, np.bool_), root=tmp_path)


def test_a_full_disk_leaves_the_lists_that_were_there(data_config: Callable[..., DataConfig], tmp_path: Path) -> None:
    old = {"train.txt": "old train\n" * 50, "val.txt": "old val\n"}
    config = data_config()
    write_lists(config, old, force=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(SegtrainError, match="cannot be written"):
            write_lists(config, {"val.txt": "new val\n", "train.txt": "new train\n" * 50}, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {name: (tmp_path / name).read_text() for name in old} == old
