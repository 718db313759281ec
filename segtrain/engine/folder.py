"""The folder of a run: where things lie, when it may be used, and from where a run goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from segtrain.config import Config, config_to_dict, dump_config
from segtrain.distributed import may_restart
from segtrain.engine.changes import check_allowed, check_changes, keeps_best
from segtrain.engine.checkpoint import FOLDER, load_checkpoint, remove_leftovers
from segtrain.engine.rotation import BEST, LAST, newest_whole
from segtrain.engine.shard_files import load_sharded, newest_sharded
from segtrain.errors import CheckpointError, ConfigError, SegtrainError
from segtrain.files import write_whole


def run_folder(config: Config) -> Path:
    """Return the folder of the run: output/name."""
    return Path(config.output) / config.name


def find_resume(config: Config, *, tell: Callable[[str], object]) -> dict[str, Any] | None:
    """Return the checkpoint to go on from, or None for a fresh start; nothing on the disk changes.

    `auto` is last.pt or, where that is damaged or gone, the newest whole one that train.keep_last kept: `tell` is told.

    Raises:
        ConfigError: the folder already holds a run, and neither resume nor overwrite says what to do; or torchrun
            starts the ranks anew after a failure, and they would not go on.
        CheckpointError: `train.resume` names no checkpoint of this run, or the run had another model or data set.
    """
    folder, resume = run_folder(config), config.train.resume
    last = folder / FOLDER / LAST
    if may_restart() and resume != "auto":
        raise ConfigError(
            f"torchrun --max-restarts starts the ranks anew after a failure, and with train.resume={resume} they would "
            f"not go on from where they were: use train.resume=auto, which begins anew where {folder} does not exist"
        )
    if config.train.overwrite and resume != "none":
        raise ConfigError("train.overwrite deletes the run that train.resume would go on with: set only one of them")
    if resume == "none":
        _check_free(config, folder)
        return None
    if resume == "auto":
        found = newest_sharded(folder / FOLDER, tell=tell) or newest_whole(folder / FOLDER, tell=tell)
        if found is None:
            _check_nothing_is_lost(config, folder)
            return None
        source, payload = found
    else:
        source = Path(resume)
        if source.resolve().parent != last.resolve().parent and (folder / "config.yaml").exists():
            raise ConfigError(
                f"train.resume={source} would mix with the run in {folder}: give this one another name=..."
            )
        payload = load_sharded(source) if source.is_dir() else load_checkpoint(source)
    if "training" not in payload:
        raise CheckpointError(
            f"{source} holds weights alone, without the optimizer: resume from last.pt, or start a new run from its "
            f"weights with model.init_from={source}"
        )
    check_changes(config, payload, source=source)
    return payload


def _check_nothing_is_lost(config: Config, folder: Path) -> None:
    check_allowed(config.train.allow_changes)
    if (folder / FOLDER / BEST).exists():
        raise CheckpointError(
            f"{folder / FOLDER / LAST} is gone, but {folder} holds a run: name a checkpoint, or use another name=..."
        )


def holds_best(config: Config, payload: Mapping[str, Any], *, tell: Callable[[str], object]) -> bool:
    """Whether best.pt of the run's folder is the best of what led to the checkpoint `payload`, measured as now."""
    path = run_folder(config) / FOLDER / BEST
    if not path.is_file() or not keeps_best(config, payload):
        return False
    try:
        step = int(load_checkpoint(path)["step"])
    except CheckpointError as error:
        tell(f"warning: {error}; the search for the best begins anew")
        return False
    return step <= int(payload["step"])  # a later one is of a course that the run has left


def _check_free(config: Config, folder: Path) -> None:
    if (folder / "config.yaml").exists() and not config.train.overwrite:
        raise ConfigError(
            f"{folder} already holds a run: go on with it by train.resume=auto, start a second one by "
            f"name={config.name}-2, or delete it by train.overwrite=true"
        )


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
        write_whole(folder / "config.yaml", text.encode("utf-8"))
    except OSError as error:
        raise SegtrainError(f"cannot write {folder}: {error.strerror}; choose another place with output=...") from error
    remove_leftovers(folder / FOLDER)
    return folder
