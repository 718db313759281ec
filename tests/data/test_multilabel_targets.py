"""Targets of classes that may overlap: from index masks, through the augmentations, with distances and weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtrain.config.data import DataConfig
from segtrain.config.loss import ClassWeightsConfig
from segtrain.data import ClassFrequencies, check_split
from segtrain.data.dataset import TrainDataset
from segtrain.data.labels import MultiLabelRules, count_labels
from segtrain.data.transforms import TrainTransform
from segtrain.errors import DataError
from segtrain.losses import build_loss, resolve_auto
from segtrain.losses.weights import class_weights

BINARY = {"root": "d", "classes": ["crack"]}
STEPS = [
    {"name": "random_scale"},
    {"name": "horizontal_flip"},
    {"name": "vertical_flip"},
    {"name": "rotate90"},
    {"name": "rotate", "degrees": 30},
    {"name": "crop", "size": [40, 40], "center_on": ["c0"]},
    {"name": "pad", "size": [48, 48]},
]


def section(num_classes: int, **changes: Any) -> DataConfig:
    names = [f"c{number}" for number in range(num_classes)]
    plain = {"root": "d", "classes": names, "labels": "multi_label", "label_map": {0: "none"}}
    return DataConfig.model_validate(plain | changes)


@pytest.mark.parametrize("num_classes", [1, 3, 6])
def test_every_map_moves_as_it_would_alone_and_as_the_image_does(num_classes: int) -> None:
    transform = TrainTransform(section(num_classes, train_transforms=STEPS))
    generator = np.random.default_rng(0)
    target = generator.integers(0, 2, (num_classes, 37, 41)).astype(np.uint8)
    target[:, :3] = 255
    target[:, 20:24, 20:24] = 1
    image = np.repeat(np.where(target[0] == 1, 200, 0).astype(np.uint8)[:, :, None], 3, axis=2)
    still = TrainTransform(section(num_classes, train_transforms=STEPS[:-2]))
    for seed in range(8):
        moved, maps = transform(image, target, seed=seed)
        assert maps.shape == (num_classes, 48, 48)
        assert set(np.unique(maps)) <= {0, 1, 255}
        assert moved.shape[:2] == maps.shape[1:]
        # the image was painted from the first map: bright where it is surely 1, dark where surely 0
        inner = maps[0, 1:-1, 1:-1]
        ring = [maps[0, 1 + y : 47 + y, 1 + x : 47 + x] for y in (-1, 0, 1) for x in (-1, 0, 1)]
        sure = np.all([part == inner for part in ring], axis=0)
        shown = moved[1:-1, 1:-1, 0]
        assert (shown[sure & (inner == 1)] > 100).all()
        assert (shown[sure & (inner == 0)] < 100).all()
        _, whole = still(image, target, seed=seed)
        for number in range(num_classes):
            _, alone = still(image, np.ascontiguousarray(target[number]), seed=seed)
            assert np.array_equal(whole[number], alone)


def test_what_comes_from_outside_the_image_is_ignored_in_every_map() -> None:
    transform = TrainTransform(section(5, train_transforms=[{"name": "pad", "size": [20, 20]}]))
    _, maps = transform(np.zeros((4, 6, 3), np.uint8), np.zeros((5, 4, 6), np.uint8), seed=0)
    assert (maps == 255).sum(axis=(1, 2)).tolist() == [20 * 20 - 24] * 5


def test_index_masks_become_a_yes_or_no_of_each_class() -> None:
    data = section(2, label_map={0: "none", 7: "c0", 9: "c1", 200: "ignore"})
    rules = MultiLabelRules.from_config(data)
    target = rules.encode(np.array([[0, 7, 9, 200]], np.uint8))
    assert target.tolist() == [[[0, 1, 0, 255]], [[0, 0, 1, 255]]]
    with pytest.raises(DataError, match=r"unknown mask values: 5 \(1 pixels\); data.label_map knows 0, 7, 9, 200"):
        rules.encode(np.array([[5]], np.uint8))
    histogram = np.bincount([0, 0, 7, 9, 200], minlength=256)
    assert rules.count(histogram).tolist() == [1, 1, 3, 3, 1, 1]


def test_a_single_class_is_1_and_none_of_it_0() -> None:
    rules = MultiLabelRules.from_config(DataConfig.model_validate(BINARY))
    assert rules.encode(np.array([[0, 1, 255]], np.uint8)).tolist() == [[[0, 1, 255]]]
    with pytest.raises(DataError, match=r"without a label_map 0 is none, 1 is crack.*\{0: none, 255: crack\}"):
        rules.encode(np.array([[0, 128]], np.uint8))


def test_counts_are_those_of_the_target_and_other_labels_are_told() -> None:
    target = np.array([[[0, 1, 255]], [[1, 1, 0]]], np.uint8)
    assert count_labels(target, num_classes=2, ignore_index=255).tolist() == [1, 2, 1, 1, 1, 0]
    assert count_labels(target[0], num_classes=1, ignore_index=255).tolist() == [1, 1, 1]
    with pytest.raises(DataError, match="labels are 0, 1 or 255, found 3"):
        count_labels(target * 3 % 255, num_classes=2, ignore_index=255)


def test_masks_of_0_and_255_alone_are_never_guessed(
    pair: Callable[..., tuple[Path, Path]], data_config: Callable[..., DataConfig]
) -> None:
    pair("a", [[0, 255], [0, 0]])
    with pytest.raises(DataError, match=r"label_map: \{0: none, 255: crack\}.*\{0: none, 255: ignore\}"):
        check_split(data_config(classes=["crack"]), "train", cache=False)
    found = check_split(data_config(classes=["crack"], label_map={0: "none", 255: "crack"}), "train", cache=False)
    assert found.counts.tolist() == [[1, 0]]


def test_items_hold_a_map_of_each_class_and_its_distances(
    pair: Callable[..., tuple[Path, Path]], data_config: Callable[..., DataConfig]
) -> None:
    pair("a", [[0, 1, 1, 2], [0, 0, 0, 0]])
    data = data_config(classes=["a", "b"], labels="multi_label", label_map={0: "none", 1: "a", 2: "b"})
    samples = check_split(data, "train", cache=False).samples
    item = TrainDataset(samples, data, distance_classes=(1,))[0, 0]
    assert item["target"].tolist() == [[[0, 1, 1, 0], [0] * 4], [[0, 0, 0, 1], [0] * 4]]
    assert item["distances"].shape == (1, 2, 4)
    assert item["distances"][0, 0].tolist() == [3.0, 2.0, 1.0, 0.0]


def test_weights_go_by_the_share_of_yes_in_the_labelled_pixels_of_the_class() -> None:
    target = np.zeros((2, 10, 10), np.uint8)
    target[0, :5], target[1, 0] = 1, 1
    target[1, 5:] = 255
    frequencies = ClassFrequencies.from_label_targets([target], 2, ignore_index=255)
    assert frequencies.share.tolist() == [0.5, 0.2]
    weights = class_weights(
        ClassWeightsConfig(scheme="inverse"), num_classes=2, frequencies=frequencies, activation="sigmoid"
    )
    assert weights is not None
    assert weights.tolist() == pytest.approx([2 / 3.5, 5 / 3.5])
    auto = resolve_auto(frequencies)
    assert (auto.activation, auto.class_weights.scheme) == ("sigmoid", "sqrt_inverse")
    alone = ClassFrequencies.from_label_targets([target[:1]], 1, ignore_index=255)
    assert resolve_auto(alone).class_weights.scheme == "none"
    assert "50.0000" in build_loss("auto", num_classes=2, frequencies=frequencies, class_names=["a", "b"]).describe()


def test_the_index_of_the_scan_and_its_numbers_are_plain(
    pair: Callable[..., tuple[Path, Path]], data_config: Callable[..., DataConfig]
) -> None:
    pair("a", [[0, 1, 1, 255]])
    data = data_config(classes=["crack"])
    first, second = check_split(data, "train"), check_split(data, "train")
    assert (first.num_read, second.num_read) == (1, 0)
    assert first.frequencies.to_dict() == second.frequencies.to_dict()
    assert json.loads(json.dumps(first.frequencies.to_dict()))["valid"] == [3]
