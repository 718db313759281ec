"""Pairs given in code reach training as files do: checked, counted, transformed, seeded for any number of workers."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from segtrain.config.data import DataConfig
from segtrain.data import check_split
from segtrain.data.dataset import TrainDataset
from segtrain.data.formats import find_samples
from segtrain.data.given import GivenPairs, check_given
from segtrain.data.loader import build_train_loader
from segtrain.data.sampling import TrainBatchSampler
from segtrain.errors import ConfigError, DataError

Make = Callable[..., DataConfig]
IMAGE = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
MASK = np.array([[0, 1, 2, 0, 255]] * 4, np.uint8)


def read(data: DataConfig, image: Any, mask: Any = MASK) -> tuple[Any, Any]:
    return GivenPairs([(image, mask)], data, split="train").read(0)


@pytest.mark.parametrize(
    ("image", "dtype"),
    [
        (IMAGE, np.uint8),
        (IMAGE.astype(np.uint16) * 200, np.uint16),
        (IMAGE / 255, np.float32),
        (Image.fromarray(IMAGE), np.uint8),
        (torch.from_numpy(IMAGE).permute(2, 0, 1), np.uint8),
        (torch.from_numpy(IMAGE).permute(2, 0, 1) / 255, np.float32),
    ],
)
def test_images_of_every_sort_become_rows_columns_channels(data_config: Make, image: Any, dtype: Any) -> None:
    found, _ = read(data_config(), image)
    assert found.dtype == dtype
    np.testing.assert_allclose(found / float(found[1, 2, 0]), IMAGE / float(IMAGE[1, 2, 0]), rtol=1e-6)


@pytest.mark.parametrize("image", [IMAGE[:, :, 0], torch.from_numpy(IMAGE[None, :, :, 0])])
def test_one_channel_is_repeated(data_config: Make, image: Any) -> None:
    found, _ = read(data_config(), image)
    np.testing.assert_array_equal(found, np.repeat(IMAGE[:, :, :1], 3, axis=2))


@pytest.mark.parametrize(
    "mask", [MASK, torch.from_numpy(MASK).long(), MASK.astype(np.int32), Image.fromarray(MASK, mode=None)]
)
def test_masks_of_every_integer_become_targets(data_config: Make, mask: Any) -> None:
    _, target = read(data_config(), IMAGE, mask)
    assert target.dtype == np.uint8
    np.testing.assert_array_equal(target, MASK)


def test_the_label_map_holds_for_given_masks_too(data_config: Make) -> None:
    data = data_config(label_map={0: 0, 7: "dot", 9: "ignore"})
    _, target = read(data, IMAGE, np.array([[0, 7, 9, 0, 7]] * 4))
    np.testing.assert_array_equal(target, [[0, 2, 255, 0, 2]] * 4)


def test_more_than_255_classes_are_ignored_by_minus_one(data_config: Make) -> None:
    data = data_config(classes=[f"class {number}" for number in range(300)], ignore_index=-1)
    _, target = read(data, IMAGE, np.array([[0, 299, -1, 0, 7]] * 4))
    assert target.dtype == np.int16
    np.testing.assert_array_equal(target, [[0, 299, -1, 0, 7]] * 4)


def test_what_was_given_is_never_changed(data_config: Make) -> None:
    image, mask = IMAGE.copy(), MASK.copy()
    found, target = read(data_config(), image, mask)
    found[:], target[:] = 0, 0
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(mask, MASK)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"image": IMAGE, "mask": MASK}, r"expected \(image, mask\), found a dict"),
        ((IMAGE, MASK, 1), r"expected \(image, mask\), found 3 values"),
        ((IMAGE.transpose(2, 0, 1), MASK), r"array \[3, 4, 5\]; expected \[3, H, W\] of a tensor, or \[H, W, 3\]"),
        ((torch.from_numpy(IMAGE), MASK), r"tensor \[4, 5, 3\]"),
        ((IMAGE.astype(np.int64), MASK), "the image holds int64; expected uint8, uint16, or floats"),
        ((IMAGE, MASK / 255), "the mask holds float64; expected whole numbers"),
        ((IMAGE, MASK[None]), r"the mask is \[1, 4, 5\]; expected \[H, W\]"),
        ((IMAGE, MASK[:3]), r"the mask is 5x3, the image 5x4 \(width x height\)"),
        ((IMAGE, MASK + 3), r"unknown mask values: 3 \(8 pixels\)"),
        ((IMAGE, MASK.astype(np.int64) - 100), "mask values run from -100 to 155"),
        ((IMAGE / np.where(IMAGE == 7, np.nan, 1), MASK), "NaN or infinity"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_pair_is_named_by_its_index_before_training(
    data_config: Make, item: Any, reason: str, workers: int
) -> None:
    pairs = GivenPairs([(IMAGE, MASK), item, (IMAGE, MASK)], data_config(), split="train")
    with pytest.raises(DataError, match=rf"1 bad file in split 'train'[\s\S]*train_data\[1\]: .*{reason}"):
        check_given(pairs, data_config(), workers=workers, show_progress=False)
    scan = check_given(pairs, skip := data_config(on_bad="skip"), workers=workers, show_progress=False)
    assert scan.good.tolist() == [0, 2]
    assert scan.frequencies.pixels.tolist() == [16, 8, 8]
    kept = pairs.select(scan.good)
    assert (len(kept), [str(sample.image) for sample in kept.samples]) == (2, ["train_data[0]", "train_data[2]"])
    assert len(TrainDataset(kept, skip)) == 2


def test_an_iterable_without_index_is_refused(data_config: Make) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([])

    with pytest.raises(ConfigError, match="train_data is a Stream without a length or an index"):
        GivenPairs(Stream(), data_config(), split="train")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="val_data is empty"):
        GivenPairs([], data_config(), split="val")


def test_classes_that_may_overlap_are_a_yes_or_no_each(data_config: Make) -> None:
    data = data_config(classes=["crack"], label_map={0: "none", 1: "crack", 255: "ignore"})
    for mask in (MASK % 2 * (MASK < 255) + (MASK == 255) * np.uint8(255), (MASK[None] == 1).astype(np.uint8)):
        pairs = GivenPairs([(IMAGE, mask)], data, split="train")
        _, target = pairs.read(0)
        assert (target.dtype, target.shape) == (np.uint8, (1, 4, 5))
        np.testing.assert_array_equal(target[0] == 1, MASK == 1)
        scan = check_given(pairs, data, workers=0, show_progress=False)
        assert scan.frequencies.pixels.tolist() == [4]


class Files(Dataset[Any]):
    """The samples of a folder data set, read as a user would."""

    def __init__(self, data: DataConfig) -> None:
        self.samples = find_samples(data, "train").samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        sample = self.samples[index]
        return np.asarray(Image.open(sample.image)), np.asarray(Image.open(sample.mask))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_pairs_from_code_and_from_files_are_the_same_to_training(
    folder_dataset: Callable[..., Any], workers: int
) -> None:
    made = folder_dataset(splits={"train": 5})
    steps = [{"name": "crop", "size": [16, 16]}, {"name": "horizontal_flip"}, {"name": "color"}]
    data = DataConfig.model_validate(made.config["data"] | {"train_transforms": steps, "input_size": [20, 30]})
    pairs = GivenPairs(Files(data), data, split="train")
    counted = check_given(pairs, data, workers=workers, show_progress=False)
    scanned = check_split(data, "train", show_progress=False, cache=False)
    assert counted.frequencies.to_dict() == scanned.frequencies.to_dict()
    np.testing.assert_array_equal(counted.counts, scanned.counts)
    given, files = TrainDataset(pairs, data), TrainDataset(scanned.samples, data)
    for index in range(5):
        for key in ("image", "target"):
            assert torch.equal(given[index, 7][key], files[index, 7][key])


class Random(Dataset[Any]):
    """Augments by the global generators, as many data sets do."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        values = [random.random(), np.random.rand(), float(torch.rand(()))]  # noqa: NPY002
        return np.full((2, 2, 3), values, np.float32), np.zeros((2, 2), np.uint8)


def test_a_data_sets_own_augmentations_follow_the_seed_for_any_number_of_workers(data_config: Make) -> None:
    data = data_config()
    dataset = TrainDataset(GivenPairs(Random(), data, split="train"), data)
    epochs = []
    before = random.getstate(), torch.get_rng_state()
    for epoch, workers in ((0, 0), (0, 2), (1, 0)):
        loader = build_train_loader(dataset, TrainBatchSampler(6, 3, seed=1, epoch=epoch), workers=workers)
        epochs.append(torch.cat([batch["image"][:, :, 0, 0] for batch in loader]))
        loader.close()
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.isin(epochs[2], epochs[0]).any()
    assert len(epochs[0].unique()) == epochs[0].numel()
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
