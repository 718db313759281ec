"""Runs small enough for tests: a tiny data set, a model of two convolutions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segtrain.config import Config, parse_config


class TinyNet(nn.Module):
    """Two convolutions with BatchNorm (or none) and dropout between them."""

    def __init__(self, num_classes: int = 3, *, norm: bool = True, dropout: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(8, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(torch.relu(self.norm(self.encoder(images)))))


@pytest.fixture(scope="session")
def tiny_net() -> type[TinyNet]:
    """The class of the tiny model."""
    return TinyNet


@pytest.fixture
def tiny_config(folder_dataset: Callable[..., Any]) -> Callable[..., Config]:
    """A factory of configurations over one data set of 10 training images; sections are merged key by key."""
    return partial(merged_config, folder_dataset(splits={"train": 10, "val": 3, "test": 2}).config)


@pytest.fixture(scope="module")
def module_config(
    folder_dataset_in: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Config]:
    """The same over one data set for all tests of a module, for runs that they share."""
    folder = tmp_path_factory.mktemp("shared_runs")
    return partial(merged_config, folder_dataset_in(folder, splits={"train": 10, "val": 3, "test": 2}).config)


def merged_config(base: dict[str, Any], **sections: Any) -> Config:
    """Lay sections over the configuration of a data set."""
    plain = dict(base)
    plain["data"] = plain["data"] | {"train_transforms": [{"name": "horizontal_flip"}]}
    for key, value in sections.items():
        merge = isinstance(value, dict) and isinstance(plain.get(key), dict) and key != "loss"
        plain[key] = plain[key] | value if merge else value
    if "epochs" in plain["train"]:
        plain["train"].pop("steps", None)
    return parse_config(plain)
