"""Tiny networks, and runs on disk that hold them: made without training, so that exports take most of the time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from segtrain.config import Config, parse_config
from segtrain.data import ClassFrequencies
from segtrain.engine.checkpoint import describe_run, save_checkpoint
from segtrain.models import SegmentationModel, build_model

# the smallest network that smp builds, nearly
MODEL = {
    "arch": "unet",
    "encoder": "tu-regnetx_002",
    "params": {"encoder_depth": 3, "decoder_channels": [16, 8, 8]},
}


class CoarseNet(nn.Module):
    """A stride of 4: it takes only images whose sides are multiples of it; its logits are 4 times as small, or not."""

    def __init__(self, in_channels: int, num_classes: int, *, enlarge: bool) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(in_channels, 8, 4, stride=4)
        self.norm = nn.BatchNorm2d(8)
        self.decoder = nn.Upsample(scale_factor=4.0 if enlarge else 1.0, mode="nearest")
        self.segmentation_head = nn.Conv2d(8, num_classes, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.segmentation_head(self.decoder(self.norm(self.encoder(images)).relu()))


class TwoHeads(nn.Module):
    """A network with deep supervision: a list of logits, the main ones first, of images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Conv2d(3, 3, 3, padding=1)
        self.auxiliary = nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.main(images), self.auxiliary(images)]


def _settle(network: nn.Module, seed: int) -> nn.Module:
    """Give weights and statistics values that differ from a fresh network's, and logits a spread."""
    generator = torch.Generator().manual_seed(seed)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) - (0.5 if value.ndim > 1 else -0.5))
    return network.eval()


@pytest.fixture(scope="session")
def coarse_model() -> Callable[..., SegmentationModel]:
    """A factory of tiny models of stride 4, which pad their images; `fused` ones give coarse logits in training."""

    def make(*, in_channels: int = 3, num_classes: int = 3, fused: bool = False) -> SegmentationModel:
        network = _settle(CoarseNet(in_channels, num_classes, enlarge=not fused), seed=3)
        return SegmentationModel(
            network,
            in_channels=in_channels,
            num_classes=num_classes,
            stride=4,
            min_size=(8, 8),
            upsampling=4 if fused else 1,
        ).eval()

    return make


@pytest.fixture(scope="session")
def two_heads() -> nn.Module:
    """A network that returns a list of logits."""
    return _settle(TwoHeads(), seed=1)


@pytest.fixture(scope="session")
def plain_config() -> Callable[..., Config]:
    """A factory of configurations whose data need not exist; sections are merged key by key."""

    def make(**sections: Any) -> Config:
        plain: dict[str, Any] = {
            "name": "tiny",
            "data": {"root": "nowhere", "classes": ["background", "block", "dot"]},
            "train": {"steps": 1},
        }
        for key, value in sections.items():
            plain[key] = {**plain.get(key, {}), **value} if isinstance(value, dict) else value
        return parse_config(plain)

    return make


@pytest.fixture(scope="session")
def frequencies() -> Callable[..., ClassFrequencies]:
    """A factory of class frequencies, the first class the most frequent by far."""

    def make(num_classes: int = 3, *, several: bool = False) -> ClassFrequencies:
        pixels = np.array([10 ** (5 - index) for index in range(num_classes)], np.int64)
        valid = np.full(num_classes, 200_000, np.int64) if several else None
        images = np.full(num_classes, 4, np.int64)
        return ClassFrequencies(pixels, images, images * 10_000, 0, 8, valid)

    return make


@pytest.fixture(scope="session")
def scenes() -> Callable[..., list[NDArray[Any]]]:
    """A factory of images [H, W, C] of two sizes: smooth, with noise, and different for each index."""

    def make(channels: int = 3, dtype: type = np.uint8) -> list[NDArray[Any]]:
        generator = np.random.default_rng(0)
        white = np.iinfo(dtype).max
        shapes = [(40, 52), (52, 40), (37, 45)]
        return [(generator.random((*shape, channels)) * white).astype(dtype) for shape in shapes]

    return make


@pytest.fixture(scope="session")
def make_run(frequencies: Callable[..., ClassFrequencies]) -> Callable[..., Path]:
    """A factory of run folders with a best.pt of a tiny U-Net and two images of val; settings are merged by section."""

    def make(folder: Path, *, payload: dict[str, Any] | None = None, **sections: Any) -> Path:
        rng = np.random.default_rng(1)
        for kind in ("images", "masks"):
            for split in ("train", "val"):
                (folder / "data" / kind / split).mkdir(parents=True)
        for index in range(2):
            for kind, shape, most in (("images", (24, 40, 3), 256), ("masks", (24, 40), 2)):
                pixels = rng.integers(0, most, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "data" / kind / "val" / f"{index}.png")
        plain: dict[str, Any] = {
            "name": "tiny",
            "output": str(folder / "runs"),
            "data": {"root": str(folder / "data"), "classes": ["background", "block", "dot"]},
            "model": MODEL,
            "train": {"steps": 1},
        }
        for key, value in sections.items():
            plain[key] = {**plain.get(key, {}), **value} if isinstance(value, dict) else value
        config = parse_config(plain)
        torch.manual_seed(2)
        model = build_model(config.model, len(config.data.classes), coarse=config.fused_upsample)
        counts = frequencies(len(config.data.classes), several=config.data.multi_label)
        names = config.data.class_names
        content = {
            **describe_run(config, counts),
            "model": model.state_dict(),
            "step": 7,
            "epoch": 1.5,
            "scores": {"miou": 0.5, **{f"iou/{name}": 0.25 for name in names}, f"dice/{names[-1]}": float("nan")},
            "support": {name: 1000 + index for index, name in enumerate(names)},
            **(payload or {}),
        }
        run = folder / "runs" / "tiny"
        save_checkpoint(run / "checkpoints" / "best.pt", content)
        return run

    return make
