"""The checkpoints of earlier steps beside last.pt: which are kept, and which one is whole when the newest is not."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segtrain.engine.checkpoint import load_checkpoint, sync_folder
from segtrain.errors import CheckpointError

LAST, BEST = "last.pt", "best.pt"
STEP_FILE = re.compile(r"step-(\d+)\.pt")


def step_files(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, file) of the numbered checkpoints in a folder, the newest first."""
    matches = ((STEP_FILE.fullmatch(path.name), path) for path in folder.glob("step-*.pt"))
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def rotate(last: Path, *, step: int, keep_last: int) -> None:
    """Keep last.pt, just written at `step`, under a numbered name too, and `keep_last` of these; 1: last.pt alone.

    Both names are of one file where the disk can do so (hard links): n checkpoints take the room of n. Files of later
    steps go: they belong to a course of the run that it has left by going on from an earlier checkpoint.

    Raises:
        CheckpointError: the numbered file could not be written; last.pt is whole.
    """
    if keep_last > 1:
        numbered = last.with_name(f"step-{step:08}.pt")
        try:
            _link(last, numbered)
        except OSError as error:
            raise CheckpointError(
                f"could not write {numbered}: {error.strerror or error}; {last.name} is whole, and holds step {step}. "
                "Free space or lower train.keep_last, then go on with train.resume=auto"
            ) from error
    kept = [path for number, path in step_files(last.parent) if number <= step][: keep_last if keep_last > 1 else 0]
    for _, path in step_files(last.parent):
        if path not in kept:
            path.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name in one step, or copy it where the disk knows no links."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)  # a rename between two names of one file leaves both


def newest_whole(folder: Path, *, tell: Callable[[str], object]) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest checkpoint of a run that can be read whole, with its content, or None where there is none.

    It is last.pt, else the numbered one of the highest step; what is passed over is told, a line for each.

    Raises:
        CheckpointError: there are checkpoints, and none is whole, or one may not be read at all.
    """
    last = folder / LAST
    damaged: list[Path] = []
    told = ""
    for path in [*([last] if last.is_file() else []), *(path for _, path in step_files(folder))]:
        if any(path.samefile(other) for other in damaged):
            continue
        try:
            payload = load_checkpoint(path)
        except CheckpointError as error:
            if isinstance(error.__cause__, OSError):
                raise
            damaged.append(path)
            told = told or str(error)
            tell(f"warning: passed over: {error}")
            continue
        if path != last:
            gone = "" if last in damaged else f"{last.name} is gone: "
            tell(f"warning: {gone}going on from {path.name}, the newest whole checkpoint (step {payload['step']})")
        return path, payload
    if not damaged:
        return None
    best = f", or start a new run (name=...) from the weights in {BEST} with model.init_from={folder / BEST}"
    raise CheckpointError(
        f"no whole checkpoint is left in {folder}: {told}. Restore a copy of {LAST}, or begin anew with "
        f"train.overwrite=true{best if (folder / BEST).is_file() else ''}"
    )
