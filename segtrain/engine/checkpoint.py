"""Checkpoints: written whole or not at all, read without running code, turned back into a model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import segtrain
from segtrain.config import Config, config_to_dict, parse_config
from segtrain.config.nearby import near_runs
from segtrain.data import ClassFrequencies
from segtrain.engine.device import select_device
from segtrain.errors import CheckpointError
from segtrain.models import Normalize, build_model
from segtrain.models.weights import read_file
from segtrain.sealed import write_sealed

FORMAT = 1
CONTENT = ("config", "model", "step", "epoch", "frequencies")
FOLDER = "checkpoints"


def save_checkpoint(path: Path, payload: Mapping[str, Any]) -> None:
    """Write `payload` to `path` so that a reader sees the old file or the new one, never a part.

    The bytes go to a temporary file beside it, reach the disk (fsync), and take the name in one step
    (rename); the folder is synced last. A checksum of all of it is in the file, and `load_checkpoint` refuses a file
    that has been damaged since.

    Raises:
        CheckpointError: the file could not be written; what stood at `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            write_sealed(stream, partial(torch.save, dict(payload)))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    # torch reports a failed write as RuntimeError, whatever the cause was
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        kept = f"the earlier {path.name} is intact" if path.exists() else "no earlier checkpoint existed"
        raise CheckpointError(
            f"could not write {path}: {_first_line(error)}; {kept}. Free space or choose another folder with "
            "output=..., then go on with train.resume=auto"
        ) from error


def sync_folder(folder: Path) -> None:
    """Have the names in a folder reach the disk, as after a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: BaseException) -> str:
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files and folders that killed saves left in a run's checkpoint folder."""
    for temporary in folder.glob(".*.tmp"):
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU with `weights_only=True`: nothing in it can run code.

    Raises:
        CheckpointError: the file is missing, broken, holds more than tensors and plain values, or is not ours.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: give a run folder or a .pt file that training wrote")
    payload = read_file(path)
    if not isinstance(payload, dict) or "format" not in payload or "config" not in payload:
        raise CheckpointError(
            f"{path} holds no segtrain checkpoint (no 'format' and 'config'); bare weights go in by model.init_from"
        )
    if payload["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {payload['format']}, this segtrain {segtrain.__version__} reads {FORMAT}"
        )
    missing = [key for key in CONTENT if key not in payload]
    if missing:
        raise CheckpointError(f"{path} is no whole checkpoint: {', '.join(missing)} is missing in it")
    return payload


def find_checkpoint(path: str | Path, which: str = "best") -> Path:
    """Return the checkpoint file meant by a run folder or a file.

    In a folder `which` (best or last) is preferred, and the other one taken where it does not exist.
    Raises CheckpointError where there is neither.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        hint = near_runs(path) or ": give a run folder (such as runs/quickstart) or a .pt file"
        raise CheckpointError(f"{path} does not exist{hint}")
    names = ("best.pt", "last.pt") if which == "best" else ("last.pt", "best.pt")
    for name in names:
        if (path / FOLDER / name).is_file():
            return path / FOLDER / name
    shards = any((path / FOLDER).glob("sharded-*"))
    why = "it holds the parts of a sharded run, whose best.pt comes with an evaluation" if shards else "was it trained?"
    raise CheckpointError(f"{path} holds no checkpoint: expected {path / FOLDER / names[0]} ({why})")


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with what is needed to use it.

    Attributes:
        path: the checkpoint file; folder: the run's folder, where outputs go by default.
        config: as trained, with the overrides applied.
        model: in eval mode on the device; the averaged weights where the run kept them.
        normalize: images as stored -> what the model expects.
        frequencies: class frequencies of the training data.
        thresholds: {class name: threshold} that training chose on val, None where it did not.
    """

    path: Path
    folder: Path
    config: Config
    model: nn.Module
    normalize: Normalize
    device: torch.device
    frequencies: ClassFrequencies
    step: int
    epoch: float
    thresholds: dict[str, float] | None = None


def load_run(
    path: str | Path, *, device: str = "auto", which: str = "best", overrides: Sequence[str] = ()
) -> LoadedRun:
    """Rebuild a trained model offline from a run folder or a checkpoint file.

    `device` auto is the best device of this machine, whatever the model was trained on, unless an override names one.
    Neither pretrained weights nor `init_from` are looked for again: all weights are in the checkpoint.

    Raises:
        CheckpointError: no checkpoint, a broken one, or one whose weights do not fit the config in it.
    """
    path = find_checkpoint(path, which)
    payload = load_checkpoint(path)
    if payload.get("custom_model"):
        raise CheckpointError(
            f"{path} holds the weights of a {payload['custom_model']} that was given in code, and not its code: load "
            "them there (the entry 'model') and call segtrain.engine.evaluate(config, model=...)"
        )
    config = parse_config(payload["config"], overrides)
    overridden = any(override.startswith("device=") for override in overrides)
    target = select_device(config.device if overridden and device == "auto" else device)
    model = build_model(config.model, len(config.data.classes), load_weights=False, coarse=config.fused_upsample)
    load_weights(model, payload.get("ema") or payload["model"], path=path)
    return LoadedRun(
        path=path,
        folder=path.parent.parent if path.parent.name == FOLDER else path.parent,
        config=config,
        model=model.to(target).eval(),
        normalize=Normalize(config.data.normalize.mean, config.data.normalize.std).to(target),
        device=target,
        frequencies=ClassFrequencies.from_dict(payload["frequencies"]),
        step=payload["step"],
        epoch=payload["epoch"],
        thresholds=(payload.get("thresholds") or {}).get("thresholds"),
    )


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], *, path: Path) -> None:
    """Load `weights` into `model`, all of them.

    Raises:
        CheckpointError: names or shapes differ; the first differences are listed.
    """
    own = model.state_dict()
    wrong = [f"missing {name}" for name in own if name not in weights]
    wrong += [f"unexpected {name}" for name in weights if name not in own]
    wrong += [
        f"{name} is {tuple(weights[name].shape)} in the file and {tuple(own[name].shape)} in the model"
        for name in own
        if name in weights and own[name].shape != weights[name].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit the model: {'; '.join(wrong[:3])}{' …' if len(wrong) > 3 else ''} "
            f"({len(wrong)} differences). Start from its weights where they fit with model.init_from={path}"
        )
    model.load_state_dict(dict(weights))


def describe_run(config: Config, frequencies: ClassFrequencies) -> dict[str, Any]:
    """Return the part of a checkpoint that does not change during a run."""
    return {
        "format": FORMAT,
        "segtrain": segtrain.__version__,
        "config": config_to_dict(config),
        "frequencies": frequencies.to_dict(),
    }
