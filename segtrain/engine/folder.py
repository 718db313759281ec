"""The folder of a run: where things lie, when it may be used, and from where a run goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from segtrain.config import Config, config_to_dict, dump_config
from segtrain.engine.checkpoint import FOLDER, load_checkpoint, remove_leftovers
from segtrain.errors import CheckpointError, ConfigError, SegtrainError

# a run that goes on with another value of these would not be the same run
FIXED_ON_RESUME = (
    "model",
    "data.classes",
    "data.labels",
    "data.label_map",
    "data.name_map",
    "data.colors",
    "data.ignore_index",
    "data.sampling.epoch_samples",
    "train.batch_size",
    "train.accumulate",
    "optimizer.name",
    "seed",
)
# how a run is started says nothing about the run
NOT_REPORTED = ("train.resume", "train.overwrite", "train.profile", "loss", *FIXED_ON_RESUME)


def run_folder(config: Config) -> Path:
    """Return the folder of the run: output/name."""
    return Path(config.output) / config.name


def find_resume(config: Config) -> dict[str, Any] | None:
    """Return the checkpoint to go on from, or None for a fresh start; nothing on the disk changes.

    Raises:
        ConfigError: the folder already holds a run, and neither resume nor overwrite says what to do.
        CheckpointError: `train.resume` names no checkpoint of this run, or the run had another model or data set.
    """
    folder, resume = run_folder(config), config.train.resume
    last = folder / FOLDER / "last.pt"
    if config.train.overwrite and resume != "none":
        raise ConfigError("train.overwrite deletes the run that train.resume would go on with: set only one of them")
    if resume == "none":
        _check_free(config, folder)
        return None
    if resume == "auto" and not last.is_file():
        if (folder / FOLDER / "best.pt").exists():
            raise CheckpointError(
                f"{last} is gone, but {folder} holds a run: name a checkpoint, or use another name=..."
            )
        return None
    source = last if resume == "auto" else Path(resume)
    if source.resolve().parent != last.resolve().parent and (folder / "config.yaml").exists():
        raise ConfigError(f"train.resume={source} would mix with the run in {folder}: give this one another name=...")
    payload = load_checkpoint(source)
    _check_same_run(config, payload, source=source)
    return payload


def _check_free(config: Config, folder: Path) -> None:
    if (folder / "config.yaml").exists() and not config.train.overwrite:
        raise ConfigError(
            f"{folder} already holds a run: go on with it by train.resume=auto, start a second one by "
            f"name={config.name}-2, or delete it by train.overwrite=true"
        )


def _check_same_run(config: Config, payload: Mapping[str, Any], *, source: Path) -> None:
    if "training" not in payload:
        raise CheckpointError(
            f"{source} holds weights alone, without the optimizer: resume from last.pt, or start a new run from its "
            f"weights with model.init_from={source}"
        )
    before, now = payload["config"], config_to_dict(config)
    changed = [
        f"{key} was {_lookup(before, key)!r} and is {_lookup(now, key)!r}"
        for key in FIXED_ON_RESUME
        if _lookup(before, key) != _lookup(now, key)
    ]
    if changed:
        raise CheckpointError(
            f"cannot go on from {source}: {'; '.join(changed)}. Restore the values, or start a new run (name=...) from "
            f"its weights with model.init_from={source}"
        )


def changed_settings(config: Config, payload: Mapping[str, Any]) -> list[str]:
    """Return `key: before -> now` for each setting that differs from the checkpoint's and may differ."""
    before, now = dict(_leaves(payload["config"])), dict(_leaves(config_to_dict(config)))
    return [
        f"{key}: {before.get(key)!r} -> {now.get(key)!r}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key) and not key.startswith(NOT_REPORTED)
    ]


def _lookup(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _leaves(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield flat `key.path`, value pairs of nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def flat_settings(config: Config) -> dict[str, Any]:
    """Return the configuration as flat `key.path: value` pairs."""
    return dict(_leaves(config_to_dict(config)))


def make_run_folder(config: Config, *, fresh: bool) -> Path:
    """Make the folder and save the resolved configuration in it; a fresh run deletes what overwrite allows.

    Call it when everything else has been checked and built.

    Raises:
        SegtrainError: the folder cannot be made or written.
    """
    folder = run_folder(config)
    # the saved file trains the same run again, wherever this one went on from
    train = config.train.model_copy(update={"resume": "none", "overwrite": False})
    text = dump_config(config.model_copy(update={"train": train}), full=True)
    try:
        if fresh and config.train.overwrite and folder.exists():
            shutil.rmtree(folder)
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(text, encoding="utf-8")
    except OSError as error:
        raise SegtrainError(f"cannot write {folder}: {error.strerror}; choose another place with output=...") from error
    remove_leftovers(folder / FOLDER)
    return folder
