"""A run with loss.fused_upsample learns and measures what the same run does on logits enlarged by the model."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import interpolate

from segtrain.config import Config
from segtrain.engine import evaluate, train
from segtrain.engine.checkpoint import load_checkpoint, load_run
from segtrain.errors import ConfigError
from segtrain.kernels.upsample import CoarseLogits
from segtrain.losses import build_loss

MakeConfig = Callable[..., Config]
LOSS: dict[str, Any] = {"terms": [{"name": "cross_entropy"}, {"name": "dice"}]}
FUSED = LOSS | {"fused_upsample": True}


class Coarse(nn.Module):
    """A quarter of the size, in the images padded to a multiple of 8."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Conv2d(8, 3, 1)

    def coarse(self, images: Tensor) -> CoarseLogits:
        height, width = images.shape[-2:]
        padded = nn.functional.pad(images, (0, -width % 8, 0, -height % 8), mode="replicate")
        logits = self.head(torch.relu(self.encoder(padded)))
        return CoarseLogits(logits, (padded.shape[-2], padded.shape[-1]), (height, width))

    def forward(self, images: Tensor) -> Tensor | CoarseLogits:
        found = self.coarse(images)
        return found if self.training else found.full()


class Enlarging(Coarse):
    def forward(self, images: Tensor) -> Tensor:
        found = self.coarse(images)
        full = interpolate(found.values, size=found.size, mode="bilinear", align_corners=False)
        return full[..., : found.crop[0], : found.crop[1]]


def run(config: Config, **parts: Any) -> list[dict[str, Any]]:
    train(config, console=Console(file=io.StringIO()), **parts)
    text = (Path(config.output) / config.name / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_fused_run_is_the_plain_one(tiny_config: MakeConfig, accumulate: int) -> None:
    steps = {"steps": 4, "log_every": 2, "batch_size": 2, "accumulate": accumulate}
    found = {}
    for name, loss, model in (("plain", LOSS, Enlarging()), ("fused", FUSED, Coarse())):
        config = tiny_config(name=name, train=steps, loss=loss)
        lines = run(config, model=model)
        state = load_checkpoint(Path(config.output) / name / "checkpoints" / "last.pt")["model"]
        found[name] = (lines, state)
    for key, value in found["plain"][1].items():
        torch.testing.assert_close(found["fused"][1][key], value, rtol=1e-4, atol=1e-6)
    for plain, fused in zip(found["plain"][0], found["fused"][0], strict=True):
        assert fused.keys() == plain.keys()
        for key in ("loss", "loss_dice", "miou"):
            if key in plain:
                assert fused[key] == pytest.approx(plain[key], rel=1e-4)


def test_a_configured_model_trains_and_is_rebuilt_with_its_coarse_head(tiny_config: MakeConfig) -> None:
    params = {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}
    model = {"arch": "fpn", "encoder": "tu-test_resnet", "params": {"encoder_depth": 5, **params}}
    config = tiny_config(name="coarse", model=model, loss=FUSED, train={"steps": 2, "batch_size": 2})
    lines = run(config)
    loaded = load_run(Path(config.output) / "coarse")
    assert loaded.model.upsampling == 4
    again = evaluate(loaded.config, model=loaded.model, normalize=loaded.normalize, frequencies=loaded.frequencies)
    measured = next(line["miou"] for line in reversed(lines) if line["kind"] == "val")
    assert again.scores["miou"] == pytest.approx(measured)


def test_a_model_or_a_loss_that_does_not_know_of_it_is_refused(tiny_config: MakeConfig) -> None:
    unet = {"arch": "unet", "encoder": "tu-test_resnet"}
    with pytest.raises(ConfigError, match="there is no upsampling in its head"):
        run(tiny_config(name="unet", model=unet, loss=FUSED))
    with pytest.raises(ConfigError, match="let them agree"):
        run(tiny_config(name="own", loss=FUSED), model=Coarse(), loss=nn.CrossEntropyLoss(ignore_index=255))
    with pytest.raises(ConfigError, match="let them agree"):
        run(tiny_config(name="given", loss=LOSS), model=Coarse(), loss=build_loss(FUSED, num_classes=3))
