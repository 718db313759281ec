"""Logits that hold NaN or infinity pass neither for a prediction nor for a score: they are refused, or told."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from segtrain.config import Config, parse_config
from segtrain.console import make_console
from segtrain.engine import evaluate, train
from segtrain.engine.checkpoint import load_checkpoint
from segtrain.engine.nan_outputs import CountNan, NanError
from segtrain.engine.predict import Predictor
from segtrain.engine.predict_files import find_images, write_predictions
from segtrain.errors import DataError
from segtrain.report.tables import class_table, metrics_json


class NanIfDark(nn.Module):
    """Class 1 where the image is bright; NaN in one pixel of an image that is black all over."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        bright = images[:, :1] * self.weight - 0.5
        logits = torch.cat([-bright, bright], dim=1)
        logits[images.amax(dim=(1, 2, 3)) == 0, 1, 0, 0] = math.nan
        return logits


class NanInEvaluation(nn.Module):
    """A classifier of pixels that learns, and makes NaN whenever it does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(images)
        return logits if self.training else logits * math.nan


def scaled(images: Tensor) -> Tensor:
    return images.float() / 255


def config_of(**evaluate_section: Any) -> Config:
    data = {"root": "nowhere", "classes": ["ground", "crack"], "workers": 0}
    return parse_config({"name": "test", "data": data, "train": {"steps": 1}, "evaluate": evaluate_section})


def add_images(folder: Path) -> None:
    """Write two bright images and a black one."""
    folder.mkdir()
    for name, value in (("a", 200), ("dark", 0), ("c", 255)):
        Image.fromarray(np.full((6, 8, 3), value, np.uint8)).save(folder / f"{name}.png")


@pytest.mark.parametrize("save", [(), ("probabilities",)])
@pytest.mark.parametrize("tile", [None, {"size": [4, 4]}])
def test_an_image_of_which_nan_is_made_gets_no_mask_and_the_others_do(
    tmp_path: Path, save: tuple[str, ...], tile: dict[str, Any] | None
) -> None:
    add_images(tmp_path / "images")
    config, out = config_of(tile=tile), tmp_path / "out"
    predictor = Predictor.from_config(config, model=NanIfDark(), normalize=scaled)
    sources = find_images([tmp_path / "images"], out=out)
    with pytest.raises(DataError, match=r"predicted: 1; the other 2 were written(?s:.*)dark\.png: .*hold NaN"):
        write_predictions(sources, out, config=config, predictor=predictor, checkpoint=Path("best.pt"), save=save)
    assert sorted(path.name for path in out.rglob("*.png") if path.parent.name == "index") == ["a.png", "c.png"]
    assert not list(out.rglob("dark*"))
    assert [entry["name"] for entry in json.loads((out / "manifest.json").read_text())["images"]] == ["a", "c"]


@pytest.mark.parametrize("infinity", [math.inf, -math.inf])
def test_infinities_are_refused_as_nan_is_and_large_numbers_exclude_a_class(infinity: float) -> None:
    class Excludes(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, images: Tensor) -> Tensor:
            return torch.cat([torch.full_like(images[:, :1], self.value), images[:, :1]], dim=1)

    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert Predictor(Excludes(-1e30), scaled).classes(images, size=(7, 9)).tolist() == torch.ones(2, 7, 9).tolist()
    for model in (Excludes(infinity), NanIfDark()):
        with pytest.raises(NanError, match="precision"):
            Predictor(model, scaled).classes(images)


def test_images_of_nan_and_of_infinity_are_counted() -> None:
    logits = torch.zeros(4, 2, 3, 3)
    logits[1, 0, 2, 2], logits[3, 1, 0, 0] = math.nan, math.inf
    logits[3, 1, 0, 1] = -math.inf
    seen = CountNan()
    seen.see(logits)
    seen.see(torch.full((1, 2, 3, 3), 60000.0, dtype=torch.float16))
    assert seen.count == 2


def test_an_evaluation_tells_of_nan(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config()
    evaluation = evaluate(config, model=NanInEvaluation())
    assert evaluation.nan_outputs == evaluation.num_images > 0
    assert metrics_json(evaluation)["nan_outputs"] == evaluation.num_images
    console = make_console()
    with console.capture() as shown:
        console.print(class_table(evaluation))
    assert "hold NaN" in shown.get()


def test_an_evaluation_of_nan_is_told_in_training_and_is_not_the_best(
    tiny_config: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    class NanInTheSecond(NanInEvaluation):
        num_evaluations = 0

        def train(self, mode: bool = True) -> NanInTheSecond:
            self.num_evaluations += not mode
            return super().train(mode)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.layer(images)
            if self.training:
                return logits
            # the rarest class everywhere, then NaN, which as an argmax is the commonest class: it would look better
            return logits * math.nan if self.num_evaluations > 1 else logits * 0 + torch.eye(3)[2].view(1, 3, 1, 1)

    config = tiny_config(train={"steps": 2, "evaluate_every": 1, "evaluate_unit": "steps"})
    result = train(config, model=NanInTheSecond())
    told = capsys.readouterr().out
    assert "hold NaN" in told
    assert told.count("best so far") == 1
    assert result.best_checkpoint is not None
    assert load_checkpoint(result.best_checkpoint)["step"] == 1
