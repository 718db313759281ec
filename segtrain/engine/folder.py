"""The folder of a run: where things lie, when it may be used, and from where a run goes on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segtrain.config import Config, config_to_dict, dump_config
from segtrain.engine.checkpoint import FOLDER, load_checkpoint, remove_leftovers
from segtrain.errors import CheckpointError, ConfigError, SegtrainError

# a run that goes on with another value of these would not be the same run
FIXED_ON_RESUME = (
    "model",
    "data.classes",
    "data.label_map",
    "data.ignore_index",
    "train.batch_size",
    "train.accumulate",
    "seed",
)


def run_folder(config: Config) -> Path:
    """Return the folder of the run: output/name."""
    return Path(config.output) / config.name


def open_run_folder(config: Config) -> dict[str, Any] | None:
    """Make the run's folder ready and return the checkpoint to go on from, or None for a fresh start.

    Raises:
        ConfigError: the folder already holds a run, and neither resume nor overwrite is set.
        CheckpointError: `train.resume` names a file that is none, or a run of another model or data set.
        SegtrainError: the folder cannot be made.
    """
    folder = run_folder(config)
    last = folder / FOLDER / "last.pt"
    resume = config.train.resume
    if config.train.overwrite and resume != "none":
        raise ConfigError("train.overwrite deletes the run that train.resume would go on with: set only one of them")
    source = None
    if resume == "auto":
        source = last if last.is_file() else None
    elif resume != "none":
        source = Path(resume)
    if source is None and resume == "none" and (folder / "config.yaml").exists():
        _replace_or_refuse(config, folder)
    payload = None
    if source is not None:
        payload = load_checkpoint(source)
        _check_same_run(config, payload, source)
    try:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SegtrainError(
            f"cannot make the run folder {folder}: {error.strerror}; choose another with output=..."
        ) from error
    remove_leftovers(folder / FOLDER)
    return payload


def _replace_or_refuse(config: Config, folder: Path) -> None:
    if not config.train.overwrite:
        raise ConfigError(
            f"{folder} already holds a run: go on with it by train.resume=auto, start a second one by "
            f"name={config.name}-2, or delete it by train.overwrite=true"
        )
    shutil.rmtree(folder)


def _check_same_run(config: Config, payload: Mapping[str, Any], source: Path) -> None:
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


def _lookup(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def save_config(config: Config) -> None:
    """Write the resolved configuration, every key spelt out, as config.yaml into the run's folder."""
    path = run_folder(config) / "config.yaml"
    try:
        path.write_text(dump_config(config, full=True), encoding="utf-8")
    except OSError as error:
        raise SegtrainError(
            f"cannot write {path}: {error.strerror}; free space or choose another output=..."
        ) from error
