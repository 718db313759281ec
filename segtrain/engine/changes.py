"""What differs between the configuration of a checkpoint and the one that goes on from it, and what may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segtrain.config import Config, config_to_dict, parse_config
from segtrain.config.dump import inline
from segtrain.distributed import world_size
from segtrain.engine.state import Schedule
from segtrain.errors import CheckpointError, ConfigError, suggest
from segtrain.optim import lr_factor

# what is learnt, from what, and how results are measured: with another value the run would be another run
FIXED = (
    "data.classes",
    "data.label_map",
    "data.name_map",
    "data.colors",
    "data.ignore_index",
    "data.input_size",
    "data.decode",
    "data.normalize",
    "data.train_transforms",
    "data.sampling",
    "loss",
    "train.batch_size",
    "train.accumulate",
    "train.exact_accumulation",
    "train.best_metric",
    "evaluate.tile",
    "evaluate.exclude",
    "evaluate.tail_fraction",
    "evaluate.prior_tau",
    "evaluate.threshold",
    "evaluate.tune_thresholds",
    "seed",
)
# the state of the run fits no other value of these, whatever train.allow_changes says
UNCHANGEABLE = ("model", "data.labels", "optimizer.name", "train.parallel")
# of these the values of best.pt are: another value begins the search for the best anew
BEST_DEPENDS_ON = ("train.best_metric", "evaluate")
# how a run is started says nothing about the run
NOT_COMPARED = ("train.resume", "train.overwrite", "train.allow_changes", "train.profile")


class _Missing:
    def __repr__(self) -> str:
        return "not set"


MISSING = _Missing()


@dataclass(frozen=True)
class Change:
    """A setting that differs: its key, as an override would name it, and both values."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {_show(self.before)} -> {_show(self.now)}"

    def within(self, keys: Sequence[str]) -> bool:
        """Whether one of `keys` is this key or a section that holds it."""
        return any(self.key == key or self.key.startswith(f"{key}.") for key in keys)


def find_changes(config: Config, payload: Mapping[str, Any]) -> list[Change]:
    """Return every setting that differs from the checkpoint's, entries of lists one by one (`loss.terms.1.weight`).

    `loss: auto`, which stands for what is yet to be chosen, is not compared.
    """
    before = payload["config"]
    with suppress(ConfigError):  # one that another version wrote
        before = config_to_dict(parse_config(before))  # a setting that came later had its default
    now = config_to_dict(config)
    changes = _differences(before, now, "")
    skipped = (*NOT_COMPARED, "loss") if "auto" in (now["loss"], before.get("loss")) else NOT_COMPARED
    return [change for change in changes if not change.within(skipped)]


def check_changes(config: Config, payload: Mapping[str, Any], *, source: Path) -> None:
    """Refuse changes that would make another run of this one, but for those that train.allow_changes lets through.

    Raises:
        ConfigError: train.allow_changes names something that needs no permission, or does not exist.
        CheckpointError: such a change; all of them are listed.
    """
    allowed = config.train.allow_changes
    check_allowed(allowed)
    changes = find_changes(config, payload)
    impossible = [change for change in changes if change.within(UNCHANGEABLE)]
    refused = [one for one in changes if one.within(FIXED) and not one.within([*allowed, "train.batch_size"])]
    told = [f"{one.key} was {_show(one.before)} and is {_show(one.now)}" for one in [*impossible, *refused]]
    keys = list(dict.fromkeys(key for change in refused for key in FIXED if change.within([key])))
    batch = _batch_change(config, payload)
    if batch is not None and "train.batch_size" not in allowed and "train" not in allowed:
        told.append(batch)
        keys.append("train.batch_size")
    if not told:
        return
    permit = f", go on all the same with train.allow_changes=[{','.join(keys)}]" if keys and not impossible else ""
    raise CheckpointError(
        f"cannot go on from {source}: {'; '.join(told)}. Restore the values{permit}, or start a new run (name=...) "
        f"from its weights with model.init_from={source}"
    )


def _batch_change(config: Config, payload: Mapping[str, Any]) -> str | None:
    """Say how many images a batch of all ranks together had, where it is another number now; else None."""
    sizes = int(payload["config"]["train"]["batch_size"]), config.train.batch_size
    ranks = int(payload["training"].get("world_size", 1)), world_size()
    if sizes[0] * ranks[0] == sizes[1] * ranks[1]:
        return None
    if ranks == (1, 1):
        return f"train.batch_size was {sizes[0]} and is {sizes[1]}"
    return f"train.batch_size × ranks was {sizes[0]} × {ranks[0]} and is {sizes[1]} × {ranks[1]}"


def check_allowed(allowed: Sequence[str]) -> None:
    """Raise ConfigError where train.allow_changes names what needs no permission, cannot be had, or does not exist."""
    for key in allowed:
        if any(key == fixed or key.startswith(f"{fixed}.") or fixed.startswith(f"{key}.") for fixed in FIXED):
            continue
        raise ConfigError(
            f"train.allow_changes: {key!r} is not among the settings that a run keeps{suggest(key, FIXED)}. These are "
            f"{', '.join(FIXED)}; {', '.join(UNCHANGEABLE)} can never change, and all else may"
        )


def changed_settings(config: Config, payload: Mapping[str, Any]) -> list[str]:
    """Return `key: before -> now` for each setting that differs from the checkpoint's."""
    return [str(change) for change in find_changes(config, payload)]


def keeps_best(config: Config, payload: Mapping[str, Any]) -> bool:
    """Whether the best value so far can be compared with those to come."""
    return not any(change.within(BEST_DEPENDS_ON) for change in find_changes(config, payload))


def rate_change(config: Config, payload: Mapping[str, Any], *, batches_per_epoch: int) -> str | None:
    """Say how the learning rate of the next step changes, where length, schedule or rate of the run did; else None."""
    try:
        before = parse_config(payload["config"])
    except ConfigError:
        return None
    rates = []
    for each in (before, config):
        total = Schedule.from_config(each, batches_per_epoch).total_steps
        rates.append(each.optimizer.lr * lr_factor(each.optimizer.schedule, payload["step"], total))
    if rates[0] == rates[1]:
        return None
    return f"the learning rate of the next step: {rates[0]:.4g} -> {rates[1]:.4g}"


def _differences(before: Any, now: Any, key: str) -> list[Change]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = list(dict.fromkeys([*before, *now]))
        values = [(before.get(name, MISSING), now.get(name, MISSING)) for name in names]
    elif _holds_sections(before) or _holds_sections(now):
        lists = [list(value) if isinstance(value, list | tuple) else [] for value in (before, now)]
        longest = max(map(len, lists))
        filled = [entries + [MISSING] * (longest - len(entries)) for entries in lists]
        names, values = list(range(longest)), list(zip(*filled, strict=True))
    else:
        return [] if before == now else [Change(key, before, now)]
    keys = [f"{key}.{name}" if key else str(name) for name in names]
    return [change for inner, both in zip(keys, values, strict=True) for change in _differences(*both, inner)]


def _holds_sections(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(entry, Mapping) for entry in value)


def _show(value: Any) -> str:
    return inline(value) if isinstance(value, Mapping | list | tuple) else repr(value)
