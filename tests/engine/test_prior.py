"""Post-hoc logit adjustment: argmax(z − τ log π) wherever classes are chosen, from the training frequencies, once."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from segtrain.cli.main import main
from segtrain.config import Config
from segtrain.config.schema import TileConfig
from segtrain.data import ClassFrequencies, scan_frequencies
from segtrain.engine import train
from segtrain.engine.checkpoint import describe_run, save_checkpoint
from segtrain.engine.evaluate import evaluate
from segtrain.engine.predict import Predictor
from segtrain.errors import ConfigError
from segtrain.metrics import predict_classes, prior_shift
from segtrain.models import Normalize, build_model

TAU = 1.5


def test_the_shift_is_minus_tau_log_of_the_share() -> None:
    shift = prior_shift([80, 15, 5], TAU)
    torch.testing.assert_close(shift, -TAU * torch.tensor([0.8, 0.15, 0.05], dtype=torch.float64).log())


def test_a_class_without_pixels_is_finite_and_never_raised_above_a_seen_one() -> None:
    shift = prior_shift([99, 0, 1], TAU)
    assert bool(shift.isfinite().all())
    assert shift.argmin() == 1
    assert prior_shift([0, 0], TAU).tolist() == [0, 0]


def test_the_shift_moves_the_argmax_in_every_layout() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, shift = torch.randn(2, 5, 7, 9, generator=generator), torch.tensor([0.0, 1.0, -1.0, 3.0, 0.5])
    expected = (logits + shift.view(1, -1, 1, 1)).argmax(1)
    assert torch.equal(predict_classes(logits, shift=shift).long(), expected)
    strided = logits.contiguous(memory_format=torch.channels_last)
    assert torch.equal(predict_classes(strided, shift=shift).long(), expected)
    with pytest.raises(ValueError, match=r"\[C\] = \[5\]"):
        predict_classes(logits, shift=shift[:4])


def test_tiles_sizes_and_whole_images_are_adjusted_alike() -> None:
    torch.manual_seed(0)
    model, images = nn.Conv2d(3, 4, 1), torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8)
    shift = prior_shift([70, 20, 9, 1], 3.0)
    plain = Predictor(model, lambda image: image.float() / 255)
    adjusted = Predictor(model, plain.normalize, shift=shift)
    expected = (plain.logits(images) + shift.view(1, -1, 1, 1)).argmax(1)
    assert not torch.equal(expected, plain.logits(images).argmax(1))
    torch.testing.assert_close(adjusted.logits(images), plain.logits(images), rtol=0, atol=0)
    assert torch.equal(adjusted.classes(images).long(), expected)
    tiled = Predictor(model, plain.normalize, TileConfig(size=(16, 16)), shift=shift)
    assert float((tiled.classes(images).long() == expected).float().mean()) > 0.999


def test_the_reported_loss_is_that_of_the_logits_as_they_are(
    tiny_config: Callable[..., Config], tiny_net: type[nn.Module]
) -> None:
    found = []
    frequencies = _frequencies([900, 90, 10])
    for section in ({}, {"prior_tau": TAU}):
        config = tiny_config(evaluate=section)
        found.append(evaluate(config, model=tiny_net(), frequencies=frequencies, loss=_mean_of_class_two))
    assert found[0].loss == found[1].loss
    assert not torch.equal(found[0].confusion.matrix, found[1].confusion.matrix)
    assert [one.prior_tau for one in found] == [None, TAU]


def test_training_evaluates_with_it(tiny_config: Callable[..., Config], tiny_net: type[nn.Module]) -> None:
    found = []
    for name, section in (("plain", {}), ("adjusted", {"prior_tau": 5.0})):
        config = tiny_config(name=name, evaluate=section, optimizer={"name": "sgd", "lr": 1e-9})
        found.append(train(config, model=tiny_net(), console=Console(file=io.StringIO())).evaluation)
    assert found[0].loss == pytest.approx(found[1].loss, rel=1e-4)
    assert not torch.equal(found[0].confusion.matrix, found[1].confusion.matrix)


def test_it_needs_the_frequencies(tiny_config: Callable[..., Config], tiny_net: type[nn.Module]) -> None:
    with pytest.raises(ConfigError, match="frequencies of the training data"):
        evaluate(tiny_config(evaluate={"prior_tau": 1.0}), model=tiny_net())


def test_training_and_test_do_not_both_adjust(tiny_config: Callable[..., Config]) -> None:
    loss = {"terms": [{"name": "cross_entropy"}], "prior": {"tau": 1.0}}
    with pytest.raises(ConfigError, match="once, at training"):
        tiny_config(loss=loss, evaluate={"prior_tau": 1.0})


def test_evaluate_visualize_and_predict_adjust_alike_and_say_so(
    tiny_config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(model={"arch": "fpn", "encoder": "mobilenet_v2", "encoder_weights": None})
    torch.manual_seed(0)
    model = build_model(config.model, len(config.data.classes), load_weights=False)
    frequencies = scan_frequencies(config.data, workers=1, show_progress=False)
    payload = describe_run(config, frequencies) | {"step": 1, "epoch": 1.0, "model": model.state_dict()}
    folder = tmp_path / "runs" / "tiny"
    save_checkpoint(folder / "checkpoints" / "best.pt", payload)
    tau = "evaluate.prior_tau=2.0"
    assert main(["evaluate", str(folder), "--split", "test", tau]) == 0
    assert "prior_tau = 2" in capsys.readouterr().out
    images = Path(config.data.root) / "images" / "test"
    assert main(["predict", str(folder), str(images), "--out", str(tmp_path / "masks"), "--set", tau]) == 0
    assert main(["visualize", str(folder), "--split", "test", "--classes", "block,dot", tau]) == 0
    content = json.loads((folder / "evaluation" / "test" / "metrics.json").read_text())
    manifest = json.loads((tmp_path / "masks" / "manifest.json").read_text())
    assert (content["prior_tau"], manifest["prior_tau"]) == (2.0, 2.0)
    normalize = Normalize(config.data.normalize.mean, config.data.normalize.std)
    shift = prior_shift(frequencies.pixels.tolist(), 2.0)
    predictor = Predictor(model.eval(), normalize, shift=shift)
    image = np.asarray(Image.open(images / "scene_00.png"))
    expected = predictor.classes(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])[0]
    written = torch.from_numpy(np.asarray(Image.open(tmp_path / "masks" / "index" / "scene_00.png")).copy())
    assert torch.equal(written, expected)


def _frequencies(pixels: list[int]) -> ClassFrequencies:
    targets = [np.repeat(np.arange(len(pixels), dtype=np.uint8), pixels).reshape(1, -1)]
    return ClassFrequencies.from_targets(targets, num_classes=len(pixels), ignore_index=255)


def _mean_of_class_two(logits: Tensor, target: Tensor) -> Tensor:
    return logits[:, 2].mean()
