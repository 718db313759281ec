"""Random batches and hand-made class frequencies for the loss tests."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """A factory of (logits requiring a gradient, int64 target) with about a fifth of the pixels ignored."""

    def make(
        images: int = 2,
        classes: int = 4,
        size: tuple[int, int] = (6, 7),
        *,
        seed: int = 0,
        ignored: float = 0.2,
        ignore_index: int = 255,
        scale: float = 2.0,
        dtype: torch.dtype = torch.float64,
    ) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(images, classes, *size, generator=generator, dtype=torch.float64) * scale
        target = torch.randint(0, classes, (images, *size), generator=generator)
        target[torch.rand(target.shape, generator=generator) < ignored] = ignore_index
        return logits.to(dtype).requires_grad_(), target

    return make


@pytest.fixture
def make_labels() -> Callable[..., Tensor]:
    """A factory of sigmoid targets for logits: int64 of 0, 1 and 255, a fifth of each class ignored on its own."""

    def make(logits: Tensor, *, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 2, logits.shape, generator=generator)
        labels[torch.rand(logits.shape, generator=generator) < 0.2] = 255
        return labels

    return make


@pytest.fixture
def frequencies() -> SimpleNamespace:
    """Counts of four classes in 10 images of 1000 pixels; no ignored pixel."""
    return SimpleNamespace(
        pixels=np.array([9000, 900, 90, 10], np.int64),
        images=np.array([10, 8, 4, 1], np.int64),
        image_pixels=np.array([10000, 8000, 4000, 1000], np.int64),
    )
