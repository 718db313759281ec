"""What training sees of each class is counted in its very targets, and can stand in for the natural frequencies."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from segtrain.config import Config
from segtrain.data import check_split
from segtrain.data.dataset import TrainDataset
from segtrain.data.sampling import TrainBatchSampler
from segtrain.data.schemes import build_scheme
from segtrain.engine import train
from segtrain.engine.exposure import count_targets
from segtrain.engine.realised import FILE
from segtrain.errors import CheckpointError, ConfigError, DataError
from segtrain.losses import build_loss

Make = Callable[..., Config]
NAMES = ("background", "block", "dot")
RARE: dict[str, Any] = {
    "sampling": {"name": "class_uniform"},
    "train_transforms": [
        {"name": "copy_paste", "p": 0.5, "min_pixels": 2},
        {"name": "crop", "size": [12, 16], "center_on": "rare"},
        {"name": "noise"},
        {"name": "horizontal_flip"},
    ],
}


def run(config: Config, model: nn.Module) -> str:
    """Train, and return what is printed."""
    out = io.StringIO()
    train(config, model=model, console=Console(file=out, width=200, highlight=False))
    return out.getvalue()


def reports(config: Config) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl about exposure."""
    lines = (Path(config.output) / config.name / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == "exposure"]


def epoch_counts(config: Config, epoch: int) -> Any:
    """int64 [N, C + 1]: what the items of an epoch hold, taken from the items themselves."""
    scan = check_split(config.data, "train", show_progress=False)
    dataset = TrainDataset(scan.samples, config.data, counts=scan.counts)
    sampler = TrainBatchSampler(
        len(dataset),
        config.train.batch_size,
        seed=config.seed,
        epoch=epoch,
        scheme=build_scheme(config.data.sampling, scan.counts, class_names=NAMES),
        epoch_samples=config.data.sampling.epoch_samples,
    )
    return count_targets((dataset[key]["target"].numpy() for batch in sampler for key in batch), config.data)


@pytest.mark.parametrize("data", [{}, RARE], ids=["plain", "rare"])
@pytest.mark.parametrize("workers", [0, 2])
def test_each_epoch_reports_the_pixels_of_the_very_targets_it_saw(
    tiny_config: Make, tiny_net: type[nn.Module], data: dict[str, Any], workers: int
) -> None:
    config = tiny_config(data=data | {"workers": workers}, train={"epochs": 2, "batch_size": 3, "accumulate": 2})
    run(config, tiny_net())
    natural = check_split(config.data, "train", show_progress=False).frequencies.share
    found = reports(config)
    assert [line["step"] for line in found] == [2, 3]
    for epoch, line in enumerate(found):
        counts = epoch_counts(config, epoch)
        share = counts[:, :3].sum(0) / counts[:, :3].sum()
        assert [line[f"realised/{name}"] for name in NAMES] == pytest.approx(share.tolist())
        assert [line[f"natural/{name}"] for name in NAMES] == pytest.approx(natural.tolist())
        assert [line[f"images/{name}"] for name in NAMES] == (counts[:, :3] > 0).sum(0).tolist()


def test_a_run_in_two_halves_counts_as_a_whole_one(tiny_config: Make, tiny_net: type[nn.Module]) -> None:
    whole = tiny_config(name="whole", data=RARE, train={"steps": 10, "batch_size": 3})
    text = run(whole, tiny_net())
    halves = {"steps": 10, "batch_size": 3, "early_stopping": {"patience": 1, "min_delta": 10.0}, "evaluate_every": 1}
    first = tiny_config(name="halves", data=RARE, train=halves | {"evaluate_unit": "steps"})
    run(first, tiny_net())  # no gain of 10 is possible: stops after step 2, in the middle of an epoch
    assert not reports(first)
    rest = tiny_config(name="halves", data=RARE, train={"steps": 10, "batch_size": 3, "resume": "auto"})
    assert _table(run(rest, tiny_net())) == _table(text)
    assert reports(rest) == reports(whole)
    assert len(reports(whole)) == 3


def test_the_tables_say_what_is_expected_and_what_was_seen_in_80_columns(
    tiny_config: Make, tiny_net: type[nn.Module]
) -> None:
    sampling = {"name": "rare_class", "weighting": "log", "min_pixels": 3, "epoch_samples": 40}
    text = run(tiny_config(data={"sampling": sampling}, train={"steps": 20}), tiny_net())
    expected = _table(text, "sampling: rare_class (weighting: log, min_pixels: 3)")
    assert expected[1] == "an epoch of 40 images from 10; expected from the sampling alone:"
    seen = _table(text)
    assert seen[0].startswith("seen in 1.0 epochs")
    assert [line.split()[0] for line in seen[1:5]] == ["class", "dot", "block", "background"]
    assert all(len(line) <= 80 for line in (*expected[:6], *seen[:5]))
    one, other = (
        np.array([[float(cell) for cell in line.split()[1:]] for line in part]) for part in (expected[3:6], seen[2:5])
    )
    np.testing.assert_allclose(one[:, 1:3], other[:, 1:3], rtol=0.2)  # 40 draws
    assert one[0, 2] > 1.3  # the dot is in half of the images
    assert one[2, 3] == other[2, 3] == 40


def test_uniform_sampling_needs_no_expectation(tiny_config: Make, tiny_net: type[nn.Module]) -> None:
    text = run(tiny_config(), tiny_net())
    assert "expected from the sampling" not in text
    assert "seen in 0.4 epochs: share of the labelled pixels" in text
    assert "an epoch reads" not in text  # 10 images in batches of 2


def test_what_an_epoch_leaves_out_and_what_changes_the_shares_is_told(
    tiny_config: Make, tiny_net: type[nn.Module]
) -> None:
    text = run(tiny_config(data=RARE, train={"steps": 3, "batch_size": 3}), tiny_net())
    folded = " ".join(text.split())
    assert "note: an epoch reads 9 of 10 images, in whole batches of 3: those left out change" in folded
    assert "seen in 1.0 epochs, after sampling, crops and paste: share of the labelled pixels" in text


def test_a_quota_of_negatives_that_changes_nothing_is_told(tiny_config: Make, tiny_net: type[nn.Module]) -> None:
    for name, classes in (("all", ["block"]), ("half", ["dot"])):  # in every image, and in every second one
        sampling = {"name": "uniform", "negatives": {"at_most": 0.2, "classes": classes}}
        text = run(tiny_config(name=name, data={"sampling": sampling}), tiny_net())
        assert ("negatives changes nothing" in text) == (name == "all")


def test_repeat_factors_that_repeat_nothing_are_told(tiny_config: Make, tiny_net: type[nn.Module]) -> None:
    text = run(tiny_config(data={"sampling": {"name": "repeat_factor"}}), tiny_net())
    assert "repeats no image" in text
    text = run(tiny_config(name="more", data={"sampling": {"name": "repeat_factor", "threshold": 0.9}}), tiny_net())
    assert "repeats no image" not in text


@pytest.mark.parametrize("workers", [0, 2])
def test_realised_frequencies_are_those_of_the_first_epoch(
    tiny_config: Make, tiny_net: type[nn.Module], workers: int
) -> None:
    loss = {
        "terms": [{"name": "cross_entropy"}],
        "class_weights": {"scheme": "inverse", "frequencies": "realised"},
        "prior": {"frequencies": "realised"},
    }
    config = tiny_config(data=RARE | {"workers": workers}, loss=loss, train={"epochs": 1})
    text = run(config, tiny_net())
    folder = Path(config.output) / config.name
    counted = json.loads((folder / FILE).read_text())["frequencies"]
    counts = epoch_counts(config, 0)
    assert counted["pixels"] == counts[:, :3].sum(0).tolist()
    assert counted["ignored"] == counts[:, 3].sum()
    assert counted["images"] == (counts[:, :3] > 0).sum(0).tolist()
    (line,) = reports(config)
    share = np.array(counted["pixels"]) / sum(counted["pixels"])
    assert [line[f"realised/{name}"] for name in NAMES] == pytest.approx(share.tolist())
    assert "realised frequencies: share of the labelled pixels" in text
    assert "class weights: inverse, from realised frequencies" in text
    described = "\n".join(_table(text, "reduction: "))  # the weights, after a note on how far they are apart
    rows = [line.split() for line in _table(described, "  class ")[1:4]]
    weights = {row[0]: float(row[2]) for row in rows}
    assert weights["dot"] / weights["block"] == pytest.approx(share[1] / share[2], rel=1e-3)


@pytest.mark.parametrize(
    ("loss", "data", "told"),
    [
        (
            "auto",
            RARE,
            "loss.class_weights from the natural frequencies, beside data.sampling, crop.center_on, copy_paste",
        ),
        (
            {"terms": [{"name": "cross_entropy"}], "prior": {"tau": 1.0}},
            {"sampling": {"name": "class_uniform"}},
            "loss.prior",
        ),
        ("auto", {}, None),
        ({"terms": [{"name": "cross_entropy"}]}, RARE, None),
        ({"terms": [{"name": "cross_entropy"}], "prior": {"frequencies": "realised"}}, RARE, None),
    ],
)
def test_correcting_twice_is_told(
    tiny_config: Make, tiny_net: type[nn.Module], loss: Any, data: dict[str, Any], told: str | None
) -> None:
    text = run(tiny_config(loss=loss, data=data, train={"steps": 1}), tiny_net())
    folded = " ".join(text.split())
    assert (told is None) == ("may correct twice" not in folded)
    assert told is None or told in folded


def test_the_length_of_an_epoch_stays_when_a_run_goes_on(tiny_config: Make, tiny_net: type[nn.Module]) -> None:
    longer = {"sampling": {"name": "uniform", "epoch_samples": 20}}
    run(tiny_config(data=longer, train={"steps": 1}), tiny_net())
    with pytest.raises(CheckpointError, match=r"data\.sampling\.epoch_samples was 20 and is None"):
        run(tiny_config(train={"steps": 2, "resume": "auto"}), tiny_net())


def test_a_run_that_goes_on_does_not_count_again(
    tiny_config: Make, tiny_net: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = {"terms": [{"name": "cross_entropy"}], "prior": {"frequencies": "realised"}}
    run(tiny_config(data=RARE, loss=loss, train={"steps": 1}), tiny_net())

    def fail(*_: Any) -> None:
        raise AssertionError("counted again")

    monkeypatch.setattr(TrainDataset, "target", fail)
    run(tiny_config(data=RARE, loss=loss, train={"steps": 2, "resume": "auto"}), tiny_net())
    other = RARE | {"train_transforms": [{"name": "horizontal_flip"}]}
    again = {"steps": 3, "resume": "auto", "allow_changes": ["data.train_transforms"]}
    with pytest.raises(AssertionError, match="counted again"):
        run(tiny_config(data=other, loss=loss, train=again), tiny_net())


def test_targets_can_be_had_without_decoding_images(tiny_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(data=RARE)
    scan = check_split(config.data, "train", show_progress=False)
    dataset = TrainDataset(scan.samples, config.data, counts=scan.counts)
    keys = [(index, seed) for index in range(10) for seed in (1, 2**60)]
    whole = [dataset[key]["target"].numpy() for key in keys]
    monkeypatch.setattr(TrainDataset, "read", lambda *_: pytest.fail("read an image"))
    for key, target in zip(keys, whole, strict=True):
        np.testing.assert_array_equal(dataset.target(key), target)


def test_counting_takes_every_kind_of_target_and_refuses_strange_labels(tiny_config: Make) -> None:
    data = tiny_config().data
    target = np.array([[0, 1, 2, 2, 255]], np.uint8)
    np.testing.assert_array_equal(count_targets([target, target.astype(np.int16)], data), [[1, 1, 2, 1]] * 2)
    with pytest.raises(DataError, match="labels run from 0 to 3"):
        count_targets([np.array([[0, 3]], np.uint8)], data)


def test_a_loss_in_code_asks_for_the_realised_frequencies(tiny_config: Make) -> None:
    section = {"terms": [{"name": "cross_entropy"}], "class_weights": {"scheme": "inverse", "frequencies": "realised"}}
    frequencies = check_split(tiny_config().data, "train", show_progress=False).frequencies
    with pytest.raises(ConfigError, match=r"loss\.class_weights\.frequencies: realised needs the frequencies"):
        build_loss(section, num_classes=3, frequencies=frequencies)
    loss = build_loss(section, num_classes=3, frequencies=frequencies, realised=frequencies)
    logits = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    natural = build_loss(section | {"class_weights": {"scheme": "inverse"}}, num_classes=3, frequencies=frequencies)
    target = torch.zeros(1, 4, 4, dtype=torch.int64)
    assert loss(logits, target) == natural(logits, target)


def test_settings_that_would_do_nothing_are_refused(tiny_config: Make) -> None:
    weights = {"scheme": "manual", "weights": [1.0, 1.0, 2.0], "frequencies": "realised"}
    with pytest.raises(ConfigError, match="manual does not go by frequencies"):
        tiny_config(loss={"terms": [{"name": "cross_entropy"}], "class_weights": weights})


def _table(text: str, start: str = "seen in") -> list[str]:
    """The lines from one that starts so, to the end."""
    lines = text.splitlines()
    return lines[next(number for number, line in enumerate(lines) if line.startswith(start)) :]
