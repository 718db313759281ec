"""Puts the samples of training together: each into its place in the batch as soon as it is made."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from segtrain.data.dataset import Item
from segtrain.data.images import AnyArray
from segtrain.errors import DataError


def fill_batch(items: Collection[Item]) -> dict[str, torch.Tensor]:
    """Stack items to {image [N, C, H, W], target [N, H, W], index [N], distances [N, K, H, W] where items have them}.

    Items are of arrays, as TrainDataset.each gives them. Images come as [H, W, C] and stay so in memory: the batch is
    channels last. Each is copied as soon as it is made, while the processor has it at hand, and by numpy, whose
    calls take less time than those of torch.

    Raises:
        DataError: sizes differ.
    """
    batch: dict[str, torch.Tensor] = {}
    places: dict[str, AnyArray] = {}  # the same memory
    number = -1
    for number, item in enumerate(items):
        for key, value in item.items():
            part = np.asarray(value)
            if number == 0:
                batch[key] = _empty((len(items), *part.shape), part.dtype)
                places[key] = batch[key].numpy()
            elif places[key].shape[1:] != part.shape or places[key].dtype != part.dtype:
                raise _differ(key, places[key][0], part)
            places[key][number] = part
        assert item.keys() == batch.keys(), f"item {number} has {sorted(item)}, the first {sorted(batch)}"
    assert number + 1 == len(items), f"{number + 1} items of {len(items)}"
    return batch | {"image": batch["image"].permute(0, 3, 1, 2)}


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> torch.Tensor:
    tensor = torch.from_numpy(np.empty(shape, dtype))
    # a worker fills memory that the other process sees: else all is copied there on its way
    return tensor if get_worker_info() is None else tensor.share_memory_()  # type: ignore[no-untyped-call]


def _differ(key: str, first: AnyArray, other: AnyArray) -> Exception:
    if key != "image":
        return AssertionError(f"{key}: {other.dtype} {list(other.shape)}, before {first.dtype} {list(first.shape)}")
    found = ", ".join(sorted(f"{image.shape[1]}x{image.shape[0]} {image.dtype}" for image in (first, other)))
    return DataError(
        f"the images of a batch differ: {found}. Bring them to one size with data.input_size, "
        "or with crop at the end of data.train_transforms"
    )
