"""Runs small enough for tests: a tiny data set, a model of two convolutions."""

from __future__ import annotations

from collections.abc import Callable
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


@pytest.fixture
def tiny_net() -> type[TinyNet]:
    """The class of the tiny model."""
    return TinyNet


@pytest.fixture
def tiny_config(folder_dataset: Callable[..., Any]) -> Callable[..., Config]:
    """A factory of configurations over one data set of 10 training images; sections are merged key by key."""
    dataset = folder_dataset(splits={"train": 10, "val": 3, "test": 2})

    def make(**sections: Any) -> Config:
        plain = dict(dataset.config)
        plain["data"] = plain["data"] | {"train_transforms": [{"name": "horizontal_flip"}]}
        for key, value in sections.items():
            merge = isinstance(value, dict) and isinstance(plain.get(key), dict) and key != "loss"
            plain[key] = plain[key] | value if merge else value
        if "epochs" in plain["train"]:
            plain["train"].pop("steps", None)
        return parse_config(plain)

    return make
