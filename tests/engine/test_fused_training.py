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

from segtrain.cli.main import main
from segtrain.config import Config
from segtrain.config.schema import EvaluateConfig
from segtrain.engine import evaluate, train
from segtrain.engine.checkpoint import load_checkpoint, load_run
from segtrain.errors import ConfigError
from segtrain.kernels.upsample import CoarseLogits
from segtrain.losses import build_loss

MakeConfig = Callable[..., Config]
LOSS: dict[str, Any] = {"terms": [{"name": "cross_entropy"}, {"name": "dice"}]}
FUSED = LOSS | {"fused_upsample": True}
# of data whose classes do not exclude each other: one class of three, and two of them
LABELS: dict[str, dict[str, Any]] = {
    "binary": {"classes": ["block"], "label_map": {0: "none", 1: "block", 2: "none", 255: "ignore"}},
    "multi_label": {
        "classes": ["block", "bar"],
        "labels": "multi_label",
        "label_map": {0: "none", 1: "block", 2: "bar", 255: "ignore"},
    },
}


class Coarse(nn.Module):
    """A quarter of the size, in the images padded to a multiple of 8."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Conv2d(8, num_classes, 1)

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


@pytest.mark.parametrize("kind", list(LABELS))
def test_so_it_is_where_classes_do_not_exclude_each_other(tiny_config: MakeConfig, kind: str) -> None:
    loss = {"activation": "sigmoid", "terms": [{"name": "balanced_cross_entropy"}, {"name": "dice"}]}
    steps = {"steps": 4, "log_every": 2, "batch_size": 2, "evaluate_every": 4, "evaluate_unit": "steps"}
    num_classes, found = len(LABELS[kind]["classes"]), {}
    for model in (Enlarging(num_classes), Coarse(num_classes)):
        fused = not isinstance(model, Enlarging)
        config = tiny_config(
            name=f"fused_{fused}",
            data=LABELS[kind],
            train=steps,
            loss=loss | {"fused_upsample": fused},
            evaluate={"tune_thresholds": True},
        )
        lines = run(config, model=model)
        payload = load_checkpoint(Path(config.output) / config.name / "checkpoints" / "best.pt")
        found[fused] = (lines, payload["model"], payload["thresholds"]["thresholds"])
    for key, value in found[False][1].items():
        torch.testing.assert_close(found[True][1][key], value, rtol=1e-4, atol=1e-6)
    assert found[True][2] == pytest.approx(found[False][2], abs=1e-3)
    for plain, fused_line in zip(found[False][0], found[True][0], strict=True):
        assert fused_line.keys() == plain.keys()
        for key in {"loss", "loss_dice", "miou", "class_loss/block"} & plain.keys():
            assert fused_line[key] == pytest.approx(plain[key], rel=1e-3)


@pytest.mark.parametrize("kind", list(LABELS))
def test_labels_go_from_a_coarse_head_to_predictions(tiny_config: MakeConfig, kind: str, tmp_path: Path) -> None:
    params = {"encoder_depth": 5, "decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}
    config = tiny_config(
        name=kind,
        data=LABELS[kind],
        model={"arch": "fpn", "encoder": "tu-test_resnet", "params": params},
        loss=FUSED | {"activation": "sigmoid"},
        train={"steps": 2, "batch_size": 2},
        evaluate={"tune_thresholds": True},
    )
    lines = run(config)
    loaded = load_run(Path(config.output) / kind)
    assert loaded.model.upsampling == 4
    plain = loaded.config.model_copy(update={"evaluate": EvaluateConfig()})  # training reports val at 0.5
    again = evaluate(plain, model=loaded.model, normalize=loaded.normalize, frequencies=loaded.frequencies)
    assert again.scores["miou"] == pytest.approx(
        next(line["miou"] for line in reversed(lines) if line["kind"] == "val")
    )
    folder, out = str(Path(config.output) / kind), tmp_path / "predicted"
    assert main(["predict", folder, f"{config.data.root}/images/test", "--out", str(out)]) == 0
    assert len(list((out / "labels" / "block").glob("*.png"))) == 2
    assert main(["visualize", folder, "--split", "test", "--worst", "1"]) == 0


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
