"""What the loss asks of the loop: where training stands, every head, and a word before step 1 where it cannot work."""

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
from segtrain.data import check_split
from segtrain.data.dataset import TrainDataset
from segtrain.engine import train
from segtrain.engine.checkpoint import load_checkpoint
from segtrain.errors import ConfigError
from segtrain.losses import SegmentationLoss, build_loss

MakeConfig = Callable[..., Config]
CE = {"name": "cross_entropy"}


def run(config: Config, model: nn.Module, **options: Any) -> str:
    text = io.StringIO()
    train(config, model=model, console=Console(file=text, width=200), **options)
    return text.getvalue()


def lines(config: Config) -> list[dict[str, Any]]:
    text = (Path(config.output) / config.name / "metrics.jsonl").read_text()
    ignored = {"time", "images_per_second", "data_wait", "seconds"}
    return [{key: value for key, value in json.loads(line).items() if key not in ignored} for line in text.splitlines()]


def weights(config: Config) -> dict[str, Tensor]:
    model: dict[str, Tensor] = load_checkpoint(Path(config.output) / config.name / "checkpoints" / "last.pt")["model"]
    return model


class Heads(nn.Module):
    """A list of logits while it trains, the second at half the size; in evaluation as `in_evaluation` says."""

    def __init__(self, *, in_evaluation: str = "first") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.heads = nn.ModuleList([nn.Conv2d(8, 3, 1), nn.Conv2d(8, 3, 1)])
        self.in_evaluation = in_evaluation

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        features = torch.relu(self.body(images))
        main: Tensor = self.heads[0](features)
        if not self.training and self.in_evaluation == "first":
            return main
        return [main, self.heads[1](nn.functional.avg_pool2d(features, 2))]


def test_ramps_and_deferred_weights_go_on_exactly(tiny_config: MakeConfig, tiny_net: type[nn.Module]) -> None:
    # five steps make an epoch: the ramp begins at step 2.5, the class weights at step 5, so both lie across the stop
    ramp = {"start": 0.0, "end": 1.0, "start_epoch": 0.5, "end_epoch": 1.5}
    loss = {
        "terms": [CE, {"name": "dice", "weight": ramp}],
        "class_weights": {"scheme": "sqrt_inverse", "start_epoch": 0.8},
    }
    options = {"batch_size": 2, "log_every": 1, "evaluate_unit": "steps", "evaluate_every": 3}
    schedule = {"name": "adamw", "lr": 0.01, "schedule": {"name": "constant"}}
    found = []
    for name, parts in (("whole", [6]), ("half", [3, 6])):
        for steps in parts:
            resume = "none" if steps == parts[0] else "auto"
            section = {**options, "steps": steps, "resume": resume}
            config = tiny_config(name=name, loss=loss, optimizer=schedule, train=section)
            run(config, tiny_net())
        found.append((weights(config), lines(config)))
    (one, logged), (other, logged_again) = found
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert logged == logged_again
    for entry in (entry for entry in logged if entry["kind"] == "train"):
        weight = min(max((entry["step"] - 1) / 5 - 0.5, 0.0), 1.0)
        assert entry["loss"] == pytest.approx(entry["loss_cross_entropy"] + weight * entry["loss_dice"], rel=1e-5)


@pytest.mark.parametrize("in_evaluation", ["first", "all"])
def test_every_head_learns_and_the_first_is_evaluated(tiny_config: MakeConfig, in_evaluation: str) -> None:
    loss = {"terms": [CE], "auxiliary": {"weights": [1.0, 0.4]}}
    config = tiny_config(loss=loss, train={"steps": 2, "log_every": 1})
    model = Heads(in_evaluation=in_evaluation)
    before = [head.weight.detach().clone() for head in model.heads]
    run(config, model)
    assert all(not torch.equal(head.weight, old) for head, old in zip(model.heads, before, strict=True))
    entry = lines(config)[0]
    assert entry["loss"] == pytest.approx(entry["loss_cross_entropy"] + 0.4 * entry["loss_auxiliary_1"], rel=1e-5)
    assert "miou" in lines(config)[-1]


def test_a_list_of_heads_needs_weights_and_weights_need_heads(
    tiny_config: MakeConfig, tiny_net: type[nn.Module]
) -> None:
    with pytest.raises(ConfigError, match=r"auxiliary.weights to one weight for each"):
        run(tiny_config(name="list", loss={"terms": [CE]}, train={"steps": 1}), Heads())
    heads = {"terms": [CE], "auxiliary": {"weights": [1.0, 0.4]}}
    with pytest.raises(ConfigError, match="gave one tensor"):
        run(tiny_config(name="tensor", loss=heads, train={"steps": 1}), tiny_net())
    config = tiny_config(name="configured", loss=heads)
    with pytest.raises(ConfigError, match=r"model\.arch have one"):
        train(config, console=Console(file=io.StringIO()))
    assert not (Path(config.output) / config.name).exists()


def test_a_loss_of_the_users_own_gets_the_list(tiny_config: MakeConfig) -> None:
    class Sum(nn.Module):
        def forward(self, logits: Any, target: Tensor) -> Tensor:
            main = logits[0] if isinstance(logits, list) else logits
            return nn.functional.cross_entropy(main, target, ignore_index=255) + 0.1 * len(logits)

    config = tiny_config(train={"steps": 1, "log_every": 1})
    run(config, Heads(), loss=Sum())
    assert lines(config)[0]["loss"] > 0.2


def test_sigmoid_learns_each_class_against_the_others_and_says_so(
    tiny_config: MakeConfig, tiny_net: type[nn.Module]
) -> None:
    section = {"terms": [CE, {"name": "focal"}, {"name": "dice"}], "activation": "sigmoid"}
    config = tiny_config(loss=section, train={"steps": 20, "log_every": 1}, optimizer={"name": "adamw", "lr": 0.01})
    text = run(config, tiny_net(dropout=0.0))
    assert "note: loss.activation: sigmoid" in text
    losses = [entry["loss"] for entry in lines(config) if entry["kind"] == "train"]
    assert losses[-1] < losses[0]
    again = tiny_config(name="given", loss=section, train={"steps": 1})
    assert "note: loss.activation: sigmoid" in run(again, tiny_net(), loss=build_loss(section, num_classes=3))
    with pytest.raises(ConfigError, match=r"prior_tau .* exclude each other"):
        tiny_config(loss=section, evaluate={"prior_tau": 1.0})


@pytest.mark.parametrize("classes", [None, ["dot", 1]])
def test_the_loader_makes_the_boundary_terms_maps(
    tiny_config: MakeConfig, tiny_net: type[nn.Module], monkeypatch: pytest.MonkeyPatch, classes: list[Any] | None
) -> None:
    given: list[tuple[int, ...] | None] = []
    terms = SegmentationLoss.terms

    def spy(self: SegmentationLoss, *args: Any, **options: Any) -> dict[str, Tensor]:
        distances = options.get("distances")
        given.append(None if distances is None else tuple(distances.shape))
        return terms(self, *args, **options)

    monkeypatch.setattr(SegmentationLoss, "terms", spy)
    loss = {"terms": [CE, {"name": "boundary", "weight": 0.01, "classes": classes}]}
    made = tiny_config(name="loader", loss=loss, train={"steps": 1, "batch_size": 2})
    run(made, tiny_net())
    assert given[0] == (2, 3 if classes is None else 2, 24, 32)
    given.clear()
    plain = tiny_config(name="loss", loss=loss, train={"steps": 1, "batch_size": 2})
    samples = check_split(plain.data, "train").samples
    run(plain, tiny_net(), train_data=TrainDataset(samples, plain.data))
    assert given[0] is None
    one, other = weights(made), weights(plain)
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=1e-2, atol=1e-4)


def test_maps_that_the_loss_does_not_read_are_refused(tiny_config: MakeConfig, tiny_net: type[nn.Module]) -> None:
    boundary = {"terms": [CE, {"name": "boundary", "classes": [1, 2]}]}
    for name, loss, message in (
        ("none", {"terms": [CE]}, r"no term of the loss reads any"),
        ("order", boundary, r"reads those of \[1, 2\]"),
    ):
        config = tiny_config(name=name, loss=loss)
        data = TrainDataset(check_split(config.data, "train").samples, config.data, distance_classes=[2, 1])
        with pytest.raises(ConfigError, match=message):
            run(config, tiny_net(), train_data=data)
