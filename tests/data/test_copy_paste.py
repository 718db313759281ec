"""Pasted regions come whole from other training images, with their labels, and nothing else comes with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from segtrain.config.data import DataConfig
from segtrain.data.copy_paste import blend, opacity, regions
from segtrain.data.dataset import TrainDataset
from segtrain.data.formats import find_samples
from segtrain.data.frequencies import check_split
from segtrain.data.steps import TrainingSet
from segtrain.data.transforms import TrainTransform
from segtrain.errors import ConfigError, DataError

Make = Callable[..., DataConfig]
PLAIN = {"name": "copy_paste", "classes": ["dot"], "p": 1.0, "min_pixels": 4, "scale": [1.0, 1.0], "flip": 0.0}
SHAPE = (40, 60)


def sample(index: int, dtype: Any = np.uint8) -> tuple[np.ndarray, np.ndarray]:
    """Background of the grey value `index`; all but sample 0 hold a dot of 3 x 4 pixels at 100 + index, and ignored."""
    image = np.full((*SHAPE, 3), index, dtype)
    target = np.zeros(SHAPE, np.uint8)
    if index:
        target[10:16, 10:20] = 255
        target[12:15, 12:16] = 2
        image[target == 255] = 90
        image[target == 2] = 100 + index
    return image, target


def paste(
    make: Make, *, num_samples: int = 4, dtype: Any = np.uint8, input_size: Any = None, **section: Any
) -> TrainTransform:
    counts = np.array(
        [np.bincount(sample(index)[1].ravel(), minlength=256)[[0, 1, 2, 255]] for index in range(num_samples)]
    )
    data = make(train_transforms=[PLAIN | section], input_size=input_size)
    return TrainTransform(data, training=TrainingSet(counts, lambda index: sample(index, dtype)))


def test_regions_come_from_other_images_with_their_label_and_without_what_is_around(data_config: Make) -> None:
    transform = paste(data_config)
    donors = set()
    for seed in range(60):
        image, target = transform(*sample(0), seed=seed, index=0)
        assert (target == 2).sum() == 12
        assert not (target == 255).any()
        values = set(np.unique(image[target == 2]))
        assert len(values) == 1
        assert not (image[target == 0] != 0).any()
        donors |= values
    assert donors == {101, 102, 103}


def test_an_image_never_gives_to_itself(data_config: Make) -> None:
    for seed in range(40):
        image, _ = paste(data_config)(*sample(2), seed=seed, index=2)
        assert set(np.unique(image)) & {101, 103}
    alone = paste(data_config, num_samples=2)(*sample(1), seed=0, index=1)
    np.testing.assert_array_equal(alone[0], sample(1)[0])


def test_places_and_number_of_regions_vary_and_all_fits(data_config: Make) -> None:
    target = np.zeros(SHAPE, np.uint8)
    for column in range(5, 55, 10):
        target[20:22, column : column + 3] = 2
    image = np.repeat(target[:, :, None], 3, axis=2)
    counts = np.array([[2400, 0, 0, 0], [2370, 0, 30, 0]])
    data = data_config(train_transforms=[PLAIN | {"max_objects": 3}])
    transform = TrainTransform(data, training=TrainingSet(counts, lambda index: (image, target)))
    sums, rows = [], set()
    for seed in range(300):
        pasted = transform(np.zeros_like(image), np.zeros_like(target), seed=seed, index=0)
        np.testing.assert_array_equal(pasted[0][:, :, 0], pasted[1])
        sums.append(int((pasted[1] == 2).sum()))
        rows |= set(np.argwhere(pasted[1] == 2)[:, 0].tolist())
    assert rows == set(range(40))
    whole = [np.mean(np.array(sums) == pixels) for pixels in (6, 12, 18)]
    assert min(whole) > 0.2  # some overlap, so that fewer pixels are left of them


def test_scaling_and_mirroring_move_image_and_target_together(data_config: Make) -> None:
    image, target = np.zeros((*SHAPE, 3), np.uint8), np.zeros(SHAPE, np.uint8)
    target[10:20, 10:20] = np.triu(np.full((10, 10), 2))
    image[target == 2] = 200
    counts = np.array([[2400, 0, 0, 0], [2345, 0, 55, 0]])
    data = data_config(train_transforms=[PLAIN | {"scale": [2.0, 2.0], "flip": 0.5}])
    transform = TrainTransform(data, training=TrainingSet(counts, lambda index: (image, target)))
    shapes = set()
    for seed in range(20):
        moved, labels = transform(np.zeros_like(image), np.zeros_like(target), seed=seed, index=0)
        (top, left), (bottom, right) = np.argwhere(labels == 2).min(0), np.argwhere(labels == 2).max(0)
        assert (bottom - top, right - left) == (19, 19)
        assert (moved[labels == 2] > 90).all()
        assert not moved[labels == 0].any()
        shapes.add(bool(labels[bottom, left] == 2))
    assert shapes == {True, False}


def test_a_region_too_large_for_the_image_is_made_to_fit(data_config: Make) -> None:
    image, target = paste(data_config, scale=[50.0, 50.0], max_objects=1)(*sample(0), seed=1, index=0)
    assert (target == 2).sum() == pytest.approx(40 * 53, rel=0.02)
    assert set(np.unique(image[target == 2])) <= {101, 102, 103}


def test_a_region_that_shrinks_to_nothing_leaves_no_trace(data_config: Make) -> None:
    hollow = np.zeros(SHAPE, np.uint8)
    hollow[10, 10:20] = hollow[10:20, 10] = 2  # an angle: shrunk to a pixel, that is one of its empty middle
    counts = np.array([[2400, 0, 0, 0], [2381, 0, 19, 0]])
    data = data_config(train_transforms=[PLAIN | {"scale": [0.1, 0.1], "onto": ["background"]}])
    transform = TrainTransform(data, training=TrainingSet(counts, lambda index: (sample(0)[0], hollow)))
    image, target = transform(*sample(0), seed=3, index=0)
    np.testing.assert_array_equal(image, sample(0)[0])
    assert not target.any()


def test_small_regions_are_left_where_they_are() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:5, 2:5] = True
    mask[5, 5] = True  # touches by its corner
    mask[10, 10:13] = True
    image = np.arange(20 * 20 * 3, dtype=np.uint16).reshape(20, 20, 3)
    ((part, cut),) = regions(image, mask, min_pixels=4)
    np.testing.assert_array_equal(part, image[2:6, 2:6])
    assert cut.sum() == 10
    assert len(regions(image, mask, min_pixels=3)) == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pasted_parts_keep_their_values_and_type(data_config: Make, dtype: Any) -> None:
    image, target = paste(data_config, dtype=dtype)(*sample(0, dtype), seed=5, index=0)
    assert image.dtype == dtype
    assert set(np.unique(image[target == 2])) <= {101, 102, 103}
    value = np.array([[[60_001]]], np.uint16)
    np.testing.assert_array_equal(blend(value * 0, value, np.ones((1, 1), np.float32)), value)


def test_images_of_two_types_are_refused(data_config: Make) -> None:
    with pytest.raises(DataError, match="training images are uint8 and uint16"):
        paste(data_config, dtype=np.uint16)(*sample(0), seed=5, index=0)


def test_feathering_blends_the_rim_inside_the_region_alone() -> None:
    mask = np.zeros((11, 11), np.uint8)
    mask[1:10, 1:10] = 1
    alpha = opacity(mask, feather=2.0)
    assert not alpha[mask == 0].any()
    np.testing.assert_allclose(alpha[5, :6], [0, 0.5, 0.75, 1, 1, 1])
    assert opacity(np.ones((1, 7), np.uint8), feather=3.0).min() == 0.5  # a thin object stays visible
    np.testing.assert_array_equal(opacity(mask, feather=0.0), mask)
    blended = blend(
        np.full((1, 1, 1), 100, np.uint8), np.full((1, 1, 1), 201, np.uint8), np.full((1, 1), 0.5, np.float32)
    )
    assert blended.item() in (150, 151)


def test_p_is_how_often_anything_is_pasted(data_config: Make) -> None:
    transform = paste(data_config, p=0.3)
    assert abs(np.mean([(transform(*sample(0), seed=seed, index=0)[1] == 2).any() for seed in range(600)]) - 0.3) < 0.06


def test_regions_lie_on_the_wished_classes_or_are_left_out(data_config: Make) -> None:
    image, target = sample(0)
    target[:, 30:] = 1
    transform = paste(data_config, onto=["block"], max_objects=1)
    columns = []
    for seed in range(60):
        found = np.argwhere(transform(image, target, seed=seed, index=0)[1] == 2)
        columns += [found[:, 1].min()] if len(found) else []
    assert min(columns) == 30
    assert len(columns) > 50  # of ten places half will do
    target[:] = 255
    assert (transform(image, target, seed=0, index=0)[1] == 255).all()


def test_donors_are_resized_as_the_image_is(data_config: Make) -> None:
    _, target = paste(data_config, input_size=[80, 120])(*sample(0), seed=1, index=0)
    assert target.shape == (80, 120)
    assert (target == 2).sum() == 48


def test_the_step_needs_to_know_the_training_set_and_the_sample(data_config: Make) -> None:
    with pytest.raises(ConfigError, match="copy_paste goes by the pixels of each class"):
        TrainTransform(data_config(train_transforms=[PLAIN]))
    with pytest.raises(ValueError, match="needs the index"):
        paste(data_config)(*sample(0), seed=1)
    with pytest.raises(ValueError, match="'dott' is not among the 3 classes"):
        paste(data_config, classes=["dott"])


def test_items_are_functions_of_their_key_and_take_from_the_training_split_alone(
    folder_dataset: Callable[..., Any], data_config: Make
) -> None:
    dataset = folder_dataset(splits={"train": 6, "val": 4})
    data = data_config(root=str(dataset.root), train_transforms=[PLAIN | {"max_objects": 1}])
    scan = check_split(data, "train", show_progress=False)
    items = TrainDataset(scan.samples, data, counts=scan.counts)
    first = items[1, 77]
    assert (first["target"] == 2).sum() == 4  # sample 1 has no dot of its own
    again = TrainDataset(find_samples(data, "train").samples, data, counts=scan.counts)
    again[3, 1]
    for key in ("image", "target"):
        np.testing.assert_array_equal(first[key], again[1, 77][key])
    pasted = {tuple(np.argwhere(items[1, seed]["target"].numpy() == 2)[0]) for seed in range(10)}
    assert len(pasted) > 5  # one image drawn ten times is augmented ten times
