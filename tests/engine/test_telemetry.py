"""Telemetry tells what each class got in training, from the reads of the loss, and costs no wait for the device."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from segtrain.config import Config
from segtrain.data import ClassFrequencies
from segtrain.engine import telemetry as telemetry_room
from segtrain.engine import train
from segtrain.engine.telemetry import Telemetry
from segtrain.kernels import confusion_cpu
from segtrain.kernels.upsample import CoarseLogits
from segtrain.losses import build_loss
from segtrain.losses.class_sums import PREDICTIONS
from segtrain.metrics import ConfusionMatrix

MakeConfig = Callable[..., Config]
NAMES = ("a", "b", "c", "d")
SKEWED = ClassFrequencies.from_targets(
    [np.repeat(np.arange(4, dtype=np.uint8), (60, 20, 15, 5))[None]], num_classes=4, ignore_index=255
)


def batches(number: int) -> list[tuple[Tensor, Tensor]]:
    """Logits and labels of classes 0 to 2: the last is never there."""
    found = []
    for seed in range(number):
        generator = torch.Generator().manual_seed(seed)
        target = torch.randint(0, 3, (2, 8, 9), generator=generator)
        target[torch.rand(target.shape, generator=generator) < 0.2] = 255
        found.append((torch.randn(2, 4, 8, 9, generator=generator), target.to(torch.uint8)))
    return found


def told(section: dict[str, Any], pairs: list[tuple[Any, Tensor]], *, every: int = 3) -> dict[str, float]:
    telemetry = Telemetry(NAMES, ignore_index=255, every=every, total_steps=100)
    loss = build_loss(section, num_classes=4)
    for step, (logits, target) in enumerate(pairs, 1):
        telemetry.see(logits, target, step=step)
        loss.terms(logits, target, **telemetry.hooks(loss))
    return telemetry.values()


def test_exposure_and_class_loss_are_of_all_batches_and_the_iou_of_the_last() -> None:
    pairs = batches(3)
    values = told({"terms": [{"name": "cross_entropy"}, {"name": "dice"}]}, pairs)
    logits, target = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    losses = nn.functional.cross_entropy(logits, target.long(), ignore_index=255, reduction="none")
    last = ConfusionMatrix(4)
    last.update(*pairs[-1])
    for index, name in enumerate(NAMES):
        of_class = target == index
        assert values[f"exposure/{name}"] == pytest.approx(float(of_class.sum() / (target != 255).sum()))
        assert values[f"class_loss/{name}"] == pytest.approx(float(losses[of_class].mean()), nan_ok=True)
        assert values[f"iou/{name}"] == pytest.approx(float(last.iou()[index]), nan_ok=True)
    assert math.isnan(values["class_loss/d"])
    assert values["miou"] == pytest.approx(float(last.iou().nanmean()))


def test_the_numbers_begin_anew_after_each_log_line() -> None:
    telemetry = Telemetry(NAMES, ignore_index=255, every=1, total_steps=100)
    loss = build_loss({"terms": [{"name": "cross_entropy"}]}, num_classes=4)
    found = []
    for step, (logits, target) in enumerate([*batches(2), *batches(1)], 1):
        telemetry.see(logits, target, step=step)
        loss.terms(logits, target, **telemetry.hooks(loss))
        found.append(telemetry.values())
    assert found[0] == pytest.approx(found[2], nan_ok=True)
    assert found[0] != pytest.approx(found[1], nan_ok=True)
    assert telemetry.values() == {}


def test_only_the_step_that_is_logged_pays_for_an_argmax(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    largest = confusion_cpu.largest
    monkeypatch.setattr(confusion_cpu, "largest", lambda *args, **more: [calls.append(args), largest(*args, **more)][1])
    for section in ({"terms": [{"name": "dice"}]}, {"terms": [{"name": "lovasz"}]}):
        told(section, batches(7))
        assert len(calls) == 2
        calls.clear()


def test_where_it_costs_nothing_the_iou_is_of_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry_room, "triton_reason", lambda device: None)
    pairs = batches(3)
    section = {"terms": [{"name": "cross_entropy"}, {"name": "dice"}], "ohem": {"top_k": 0.1}, "prior": {"tau": 1.0}}
    loss = build_loss(section, num_classes=4, frequencies=SKEWED)
    telemetry = Telemetry(NAMES, ignore_index=255, every=1000, total_steps=1000)
    every = ConfusionMatrix(4)
    for step, (logits, target) in enumerate(pairs, 1):
        telemetry.see(logits, target, step=step)
        loss.terms(logits, target, **telemetry.hooks(loss))
        every.update(logits, target)
    values = telemetry.values()
    assert [values[f"iou/{name}"] for name in NAMES] == pytest.approx(every.iou().tolist(), nan_ok=True)
    assert values["miou"] == pytest.approx(float(every.iou().nanmean()))


def test_a_loss_of_someone_else_is_looked_at_and_asked_for_nothing() -> None:
    telemetry = Telemetry(NAMES, ignore_index=255, every=1, total_steps=100)
    logits, target = batches(1)[0]
    telemetry.see(logits, target, step=1)
    assert telemetry.hooks(nn.CrossEntropyLoss()) == {}
    seen = ConfusionMatrix(4)
    seen.update(logits, target)
    assert telemetry.values()["miou"] == pytest.approx(float(seen.iou().nanmean()))


def test_mining_tells_the_loss_of_what_is_kept_and_focal_stands_in_for_cross_entropy() -> None:
    mined = told({"terms": [{"name": "cross_entropy"}], "ohem": {"top_k": 0.3}}, batches(3))
    plain = told({"terms": [{"name": "cross_entropy"}]}, batches(3))
    assert all(mined[f"class_loss/{name}"] > plain[f"class_loss/{name}"] for name in "abc")
    assert mined["exposure/a"] == plain["exposure/a"]
    focal = told({"terms": [{"name": "focal"}]}, batches(3))
    assert 0 < focal["class_loss/a"] < plain["class_loss/a"]
    assert "class_loss/a" not in told({"terms": [{"name": "dice"}]}, batches(3))


def test_a_prior_read_apart_counts_each_batch_once() -> None:
    section = {"terms": [{"name": "dice"}, {"name": "focal", "gamma": 1.0}, {"name": "focal", "gamma": 2.0}]}
    values = told(section, batches(3))
    assert sum(values[f"exposure/{name}"] for name in NAMES) == pytest.approx(1)
    assert values["class_loss/a"] == pytest.approx(
        told({"terms": [{"name": "focal", "gamma": 1.0}]}, batches(3))["class_loss/a"]
    )


def test_heads_coarse_logits_and_sigmoid_are_understood() -> None:
    pairs = batches(3)
    coarse = [(CoarseLogits(logits, (16, 18), (15, 17)), torch.zeros(2, 15, 17).byte()) for logits, _ in pairs]
    values = told({"terms": [{"name": "cross_entropy"}], "fused_upsample": True}, coarse)
    full = ConfusionMatrix(4)
    full.update(coarse[-1][0].full(), coarse[-1][1])
    assert values["iou/a"] == pytest.approx(float(full.iou()[0]))
    heads = [([logits, 0 * logits], target) for logits, target in pairs]
    section: dict[str, Any] = {"terms": [{"name": "cross_entropy"}]}
    two = told(section | {"auxiliary": {"weights": [1.0, 0.5]}}, heads)
    assert two == pytest.approx(told(section, pairs), nan_ok=True)
    sigmoid = told(section | {"activation": "sigmoid"}, pairs)
    assert sigmoid["exposure/a"] == pytest.approx(two["exposure/a"])
    assert sigmoid["iou/a"] == two["iou/a"]


def test_nothing_asks_the_device_before_the_values_are_fetched() -> None:
    """The meta device stands in for one that must not be waited for: asking it for a number raises."""
    telemetry = Telemetry(NAMES, ignore_index=255, every=1, total_steps=100)
    logits, target = batches(1)[0]
    telemetry.see(logits.to("meta"), target.to("meta"), step=1)
    telemetry.hooks(nn.CrossEntropyLoss())
    sums: list[Any] = []
    loss = build_loss({"terms": [{"name": "cross_entropy"}]}, num_classes=4)
    loss.terms(logits, target, observe=sums.append, also=PREDICTIONS)
    on_device = {name: value.to("meta") for name, value in vars(sums[0]).items() if value is not None}
    telemetry.observe(type(sums[0])(**on_device))
    with pytest.raises(NotImplementedError):
        telemetry.values()


def test_a_run_logs_its_classes_at_each_log_line(tiny_config: MakeConfig, tiny_net: type[nn.Module]) -> None:
    for name, telemetry in (("told", True), ("quiet", False)):
        steps = {"steps": 4, "log_every": 2, "batch_size": 2, "telemetry": telemetry}
        config = tiny_config(name=name, train=steps, loss={"terms": [{"name": "cross_entropy"}]})
        train(config, model=tiny_net(), console=Console(file=io.StringIO()))
        text = (Path(config.output) / name / "metrics.jsonl").read_text()
        lines = [line for line in map(json.loads, text.splitlines()) if line["kind"] == "train"]
        assert [line["step"] for line in lines] == [2, 4]
        for line in lines:
            shares = [line.get(f"exposure/{label}") for label in config.data.class_names]
            assert (sum(shares) == pytest.approx(1)) if telemetry else shares == [None] * len(shares)
            assert ("miou" in line) == telemetry
