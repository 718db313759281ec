"""Two passes over an accumulation window make it one large batch for every term, and leave no other trace."""

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

from segtrain.config import Config
from segtrain.engine import train
from segtrain.engine.checkpoint import load_checkpoint
from segtrain.errors import ConfigError

MakeConfig = Callable[..., Config]

DICE = {"terms": [{"name": "cross_entropy"}, {"name": "dice"}]}
LOSSES = {
    "dice": DICE,
    "squared and tversky": {"terms": [{"name": "dice", "squared": True}, {"name": "tversky"}]},
    "weighted": {
        "terms": [{"name": "cross_entropy", "label_smoothing": 0.1}, {"name": "focal"}, {"name": "focal_tversky"}],
        "class_weights": {"scheme": "sqrt_inverse"},
        "reduction": "weighted",
    },
    "generalized_dice": {"terms": [{"name": "generalized_dice"}, {"name": "dice", "per": "image"}]},
}


class DoubleNet(nn.Module):
    """Float64 inside, so that sums in another order still agree; remembers its dropout masks."""

    def __init__(self, *, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(8, 3, 1)
        self.double()
        self.masks: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        features = torch.tanh(self.norm(self.body(images.double())))
        mask = self.dropout(torch.ones_like(features[:, :, :1, :1]))
        if self.training:
            self.masks.append(mask.detach().clone())
        logits: Tensor = self.head(features * mask)
        return logits


def run(config: Config, model: nn.Module, **options: Any) -> str:
    text = io.StringIO()
    train(config, model=model, console=Console(file=text, width=200), **options)
    return text.getvalue()


def weights(config: Config) -> dict[str, Tensor]:
    model: dict[str, Tensor] = load_checkpoint(Path(config.output) / config.name / "checkpoints" / "last.pt")["model"]
    return model


def logged(config: Config) -> dict[str, float]:
    lines = (Path(config.output) / config.name / "metrics.jsonl").read_text().splitlines()
    return next(entry for entry in map(json.loads, lines) if entry["kind"] == "train")


@pytest.fixture
def make(tiny_config: MakeConfig) -> MakeConfig:
    """One SGD step on all ten images, in one batch or in five."""

    def config(name: str, *, loss: dict[str, Any], batch_size: int = 2, steps: int = 1, **section: Any) -> Config:
        common = {"steps": steps, "batch_size": batch_size, "accumulate": 10 // batch_size, "log_every": 1}
        data = {"train_transforms": []}
        return tiny_config(
            name=name, loss=loss, data=data, optimizer={"name": "sgd", "lr": 0.1}, train={**common, **section}
        )

    return config


@pytest.mark.parametrize("name", LOSSES)
def test_a_window_makes_the_step_of_one_large_batch(make: MakeConfig, name: str) -> None:
    large = make("large", loss=LOSSES[name], batch_size=10)
    small = make("small", loss=LOSSES[name], exact_accumulation=True)
    apart = make("apart", loss=LOSSES[name])
    for config in (large, small, apart):
        run(config, DoubleNet())
    expected, found, without = weights(large), weights(small), weights(apart)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-14)
    assert max(float((without[key] - value).abs().max()) for key, value in expected.items()) > 1e-6
    one, other = logged(large), logged(small)
    losses = [key for key in one if key.startswith("loss")]
    assert {key: other[key] for key in losses} == pytest.approx({key: one[key] for key in losses}, rel=1e-12)


def test_both_passes_see_equal_dropout_and_draw_once(make: MakeConfig) -> None:
    two_passes, one_pass = DoubleNet(dropout=0.5), DoubleNet(dropout=0.5)
    run(make("two", loss=DICE, batch_size=5, steps=2, exact_accumulation=True), two_passes)
    run(make("one", loss=DICE, batch_size=5, steps=2), one_pass)
    assert len(two_passes.masks) == 8
    assert len(one_pass.masks) == 4
    assert not torch.equal(one_pass.masks[0], one_pass.masks[1])
    masks = two_passes.masks
    for step in range(2):
        first, second = masks[4 * step : 4 * step + 2], masks[4 * step + 2 : 4 * step + 4]
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        drawn = one_pass.masks[2 * step : 2 * step + 2]
        assert all(torch.equal(a, b) for a, b in zip(second, drawn, strict=True))


def test_batch_norm_counts_each_batch_once(make: MakeConfig) -> None:
    configs = [make("one", loss=DICE), make("two", loss=DICE, exact_accumulation=True)]
    for config in configs:
        run(config, DoubleNet(norm=True))
    one, two = map(weights, configs)
    assert int(two["norm.num_batches_tracked"]) == 5
    assert torch.equal(one["norm.running_mean"], two["norm.running_mean"])
    assert torch.equal(one["norm.running_var"], two["norm.running_var"])


def test_the_plan_says_what_is_not_exact(make: MakeConfig) -> None:
    assert "note: dice: " in run(make("plain", loss=DICE), DoubleNet())
    assert "note: " not in run(make("exact", loss=DICE, exact_accumulation=True), DoubleNet())
    mined = {**DICE, "ohem": {"top_k": 0.5}}
    text = run(make("mined", loss=mined, exact_accumulation=True), DoubleNet())
    assert "note: cross_entropy: " in text
    assert "dice: " not in text.partition("note: ")[2].splitlines()[0]


def test_the_setting_is_refused_where_it_changes_nothing(make: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="accumulate is 1"):
        make("one", loss=DICE, batch_size=10, exact_accumulation=True)
    exact = {"terms": [{"name": "cross_entropy"}, {"name": "dice", "per": "image"}]}
    with pytest.raises(ConfigError, match="changes nothing"):
        run(make("exact", loss=exact, exact_accumulation=True), DoubleNet())
    with pytest.raises(ConfigError, match="given in code"):
        run(make("own", loss=DICE, exact_accumulation=True), DoubleNet(), loss=nn.CrossEntropyLoss(ignore_index=255))
