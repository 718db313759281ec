"""A run that goes on with other settings says which, key by key, and refuses those that would make it another run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segtrain.config import Config, config_to_dict
from segtrain.config.data import DataConfig
from segtrain.config.loss import LossConfig
from segtrain.config.schema import EvaluateConfig, TrainConfig
from segtrain.engine.changes import (
    FIXED,
    UNCHANGEABLE,
    changed_settings,
    check_changes,
    keeps_best,
    rate_change,
)
from segtrain.errors import CheckpointError, ConfigError

MakeConfig = Callable[..., Config]
LOSS: dict[str, Any] = {"terms": [{"name": "cross_entropy"}, {"name": "dice", "weight": 1.0}]}
SOURCE = Path("last.pt")


def payload_of(config: Config, *, step: int = 5, ranks: int = 1) -> dict[str, Any]:
    return {"config": config_to_dict(config), "step": step, "training": {"world_size": ranks}}


@pytest.fixture(scope="module")
def before(module_config: MakeConfig) -> dict[str, Any]:
    return payload_of(module_config(loss=LOSS, train={"steps": 10}))


@pytest.fixture(scope="module")
def changed(module_config: MakeConfig) -> MakeConfig:
    """The same configuration with some of it changed, and going on."""

    def make(**sections: Any) -> Config:
        train = {"steps": 10, "resume": "auto", **sections.pop("train", {})}
        return module_config(**{"loss": LOSS, **sections, "train": train})

    return make


def test_nothing_is_reported_where_nothing_changed(before: dict[str, Any], changed: MakeConfig) -> None:
    check_changes(changed(), before, source=SOURCE)
    assert changed_settings(changed(), before) == []
    assert keeps_best(changed(), before)
    assert rate_change(changed(), before, batches_per_epoch=5) is None


def test_a_setting_that_came_later_had_its_default(before: dict[str, Any], changed: MakeConfig) -> None:
    older = payload_of(changed())
    del older["config"]["train"]["keep_last"], older["config"]["train"]["allow_changes"]
    assert changed_settings(changed(), older) == []
    older["config"]["forgotten"] = 1  # of another version: compared as it is
    assert "forgotten: 1 -> not set" in changed_settings(changed(), older)


def test_entries_of_lists_are_reported_one_by_one(before: dict[str, Any], changed: MakeConfig) -> None:
    terms = [{"name": "cross_entropy"}, {"name": "dice", "weight": 2.0}, {"name": "focal"}]
    steps = [{"name": "horizontal_flip", "p": 0.1}]
    found = changed_settings(
        changed(loss={**LOSS, "terms": terms}, data={"train_transforms": steps}, optimizer={"lr": 0.5}), before
    )
    assert "loss.terms.1.weight: 1.0 -> 2.0" in found
    assert "data.train_transforms.0.p: 0.5 -> 0.1" in found
    assert "optimizer.lr: 0.001 -> 0.5" in found
    assert next(line for line in found if line.startswith("loss.terms.2")).startswith(
        "loss.terms.2: not set -> {name: focal"
    )
    assert len(found) == 4


REFUSED: dict[str, dict[str, Any]] = {
    "loss.terms.1.weight": {"loss": {"terms": [{"name": "cross_entropy"}, {"name": "dice", "weight": 3.0}]}},
    "data.normalize.mean": {"data": {"normalize": {"mean": [0.5, 0.5, 0.5]}}},
    "data.train_transforms.0.p": {"data": {"train_transforms": [{"name": "horizontal_flip", "p": 0.9}]}},
    "data.sampling.epoch_samples": {"data": {"sampling": {"name": "uniform", "epoch_samples": 8}}},
    "data.input_size": {"data": {"input_size": [16, 16]}},
    "data.classes": {"data": {"classes": ["background", "block", "point"]}},
    "train.batch_size": {"train": {"batch_size": 3}},
    "train.accumulate": {"train": {"accumulate": 2}},
    "train.best_metric": {"train": {"best_metric": "val/loss"}},
    "evaluate.exclude": {"evaluate": {"exclude": ["background"]}},
    "seed": {"seed": 1},
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_would_make_another_run_is_refused_unless_it_is_allowed(
    before: dict[str, Any], changed: MakeConfig, key: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"cannot go on from last\.pt: {key} was .* and is .*Restore") as caught:
        check_changes(changed(**REFUSED[key]), before, source=SOURCE)
    (permit,) = [fixed for fixed in FIXED if key == fixed or key.startswith(f"{fixed}.")]
    assert f"train.allow_changes=[{permit}]" in str(caught.value)
    for allowed in (permit, key):
        sections = {**REFUSED[key], "train": {**REFUSED[key].get("train", {}), "allow_changes": [allowed]}}
        check_changes(changed(**sections), before, source=SOURCE)
        assert any(line.startswith(key) for line in changed_settings(changed(**sections), before))


def test_all_that_is_refused_is_listed(before: dict[str, Any], changed: MakeConfig) -> None:
    other = changed(seed=4, train={"accumulate": 3, "allow_changes": ["seed"]}, data={"input_size": [8, 8]})
    with pytest.raises(
        CheckpointError, match=r"input_size was None and is \[8, 8\]; train\.accumulate was 1 and is 3\. "
    ):
        check_changes(other, before, source=SOURCE)


@pytest.mark.parametrize(
    ("key", "sections"),
    [
        ("optimizer.name", {"optimizer": {"name": "sgd", "lr": 0.1}}),
        ("model.encoder", {"model": {"encoder": "resnet34"}}),
    ],
)
def test_what_the_state_cannot_fit_is_refused_whatever_is_allowed(
    before: dict[str, Any], changed: MakeConfig, key: str, sections: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match=rf"{key} was .*model\.init_from") as caught:
        check_changes(changed(**sections, train={"allow_changes": ["seed"]}), before, source=SOURCE)
    assert "allow_changes" not in str(caught.value)


@pytest.mark.parametrize("key", ["losss", "optimizer.lr", "model", "train.resume"])
def test_a_permission_that_does_nothing_is_refused(before: dict[str, Any], changed: MakeConfig, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"train\.allow_changes: '{key}' is not among") as caught:
        check_changes(changed(train={"allow_changes": [key]}), before, source=SOURCE)
    assert ("did you mean 'loss'" in str(caught.value)) == (key == "losss")


def test_a_permission_without_a_run_to_go_on_with_is_refused(changed: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"allow_changes is for a run that goes on"):
        changed(train={"resume": "none", "allow_changes": ["loss"]})


def test_another_way_of_measuring_begins_the_search_for_the_best_anew(
    before: dict[str, Any], changed: MakeConfig
) -> None:
    assert not keeps_best(changed(train={"best_metric": "val/loss"}), before)
    assert not keeps_best(changed(evaluate={"exclude": ["dot"]}), before)
    assert keeps_best(changed(train={"steps": 99}, optimizer={"lr": 0.1}), before)


def test_another_length_tells_what_becomes_of_the_learning_rate(before: dict[str, Any], changed: MakeConfig) -> None:
    found = rate_change(changed(train={"steps": 20}), before, batches_per_epoch=5)
    assert found == "the learning rate of the next step: 0.0005359 -> 0.0007719"
    constant = {"name": "adamw", "lr": 0.001, "schedule": {"name": "constant"}}
    first = payload_of(changed(optimizer=constant))
    assert rate_change(changed(optimizer=constant, train={"steps": 20}), first, batches_per_epoch=5) is None


def test_the_batch_of_all_ranks_together_is_what_counts(changed: MakeConfig) -> None:
    two_ranks = payload_of(changed(train={"batch_size": 2}), ranks=2)
    check_changes(changed(train={"batch_size": 4}), two_ranks, source=SOURCE)
    with pytest.raises(CheckpointError, match=r"train\.batch_size × ranks was 2 × 2 and is 2 × 1"):
        check_changes(changed(train={"batch_size": 2}), two_ranks, source=SOURCE)
    check_changes(changed(train={"batch_size": 2, "allow_changes": ["train.batch_size"]}), two_ranks, source=SOURCE)


def test_every_setting_that_is_kept_exists(changed: MakeConfig) -> None:
    sections = {"data": DataConfig, "train": TrainConfig, "evaluate": EvaluateConfig, "loss": LossConfig}
    plain = config_to_dict(changed())
    for key in (*FIXED, *UNCHANGEABLE):
        head, _, rest = key.partition(".")
        assert head in plain
        if rest and head in sections:
            assert rest in sections[head].model_fields, key
