"""Weights from files: read without running anything in them, matched by name and size, and reported."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from segtrain.errors import CheckpointError, ConfigError, some
from segtrain.sealed import is_whole

# What wrappers put before names: DistributedDataParallel, torch.compile, our own module, timm's feature extractors, ...
WRAPPERS = ("module.", "_orig_mod.", "network.")
ENCODER_WRAPPERS = (*WRAPPERS, "model.", "encoder.", "backbone.")
# Under these keys, training frameworks keep the state dict in their checkpoints. Averaged weights (`ema`) come first:
# they are what evaluation and prediction use.
CONTAINERS = ("ema", "model", "state_dict", "model_state_dict", "model_state", "network")

# What the unpickler and the container formats raise for what a damaged file holds.
DAMAGE = (
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)


def read_file(path: Path) -> Any:
    """Read a file written by torch.save (tensors and plain values only) or a safetensors file.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors and plain values.
    """
    if path.is_dir():
        found = ", ".join(sorted(str(file.relative_to(path)) for file in path.rglob("*.pt"))[:5])
        raise CheckpointError(f"{path} is a folder: name a file in it" + (f", such as {found}" if found else ""))
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: expected a file of weights; relative to {Path.cwd()}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(path.read_bytes())
        if not is_whole(path):
            raise CheckpointError(f"{path} is damaged: it is cut off, or other bytes than were written: fetch it again")
        with warnings.catch_warnings():
            # Files of other pickle protocols load, or are refused below: no news for the user.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is not a file of tensors and plain values, and nothing in it was run: {_first_line(error)}; "
            "save only the state dict: torch.save(model.state_dict(), path)"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {_first_line(error)}") from error
    except DAMAGE as error:
        raise CheckpointError(
            f"{path} is damaged or not a file of weights ({type(error).__name__}: {_first_line(error)}): fetch it again"
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a file: a bare one, or the one in a checkpoint (`ema` before `model`, `state_dict`, ...).

    Raises:
        CheckpointError: as `read_file`, and when there are no named tensors.
    """
    content = read_file(path)
    if isinstance(content, dict):
        inner = [content[key] for key in CONTAINERS if isinstance(content.get(key), dict)]
        for candidate in [*inner, content]:
            tensors = {str(key): value for key, value in candidate.items() if isinstance(value, Tensor)}
            if tensors:
                return tensors
    keys = f" with the keys {', '.join(map(str, list(content)[:8]))}" if isinstance(content, dict) else ""
    raise CheckpointError(f"{path} holds no named tensors: found {type(content).__name__}{keys}; expected a state dict")


def load_encoder(encoder: nn.Module, path: Path, *, name: str, in_channels: int) -> list[str]:
    """Start an encoder from a file of its own weights or of a classifier (smp, timm and torchvision names).

    Prefixes such as `encoder.` and `module.` do not matter; what the encoder has no place for (`fc.*`) is left.
    A first convolution over three channels is repeated over `in_channels`, scaled to keep the sum.

    Returns:
        Lines for the log.

    Raises:
        CheckpointError: the file cannot be read.
        ConfigError: fewer than half of the encoder's tensors are in the file.
    """
    targets = _by_plain_name(encoder.state_dict(), ENCODER_WRAPPERS)
    sources = _by_plain_name(read_tensors(path), ENCODER_WRAPPERS)
    wanted = [key for key in targets if not key.endswith("num_batches_tracked")]
    report, taken = [], set()
    for key, source in sources.items():
        target = targets.get(key)
        if target is None:
            continue
        if _is_rgb_convolution(source, target, in_channels):
            report.append(f"{path.name}: {key} repeated from 3 to {in_channels} input channels")
            source = source[:, torch.arange(in_channels) % 3] * (3 / in_channels)
        if source.shape == target.shape:
            target.copy_(source)
            taken.add(key)
    missing = [key for key in wanted if key not in taken]
    if len(missing) * 2 > len(wanted):
        raise ConfigError(
            f"model.encoder_weights: {path} has {len(wanted) - len(missing)} of the {len(wanted)} tensors of encoder "
            f"{name} (names and sizes); it has {some(list(sources), limit=4)}, the encoder wants "
            f"{some(missing, limit=4)}: give the file of this very encoder"
        )
    report.append(f"{path.name}: {len(wanted) - len(missing)} of {len(wanted)} tensors of the encoder taken")
    left = [key for key in sources if key not in taken and not key.endswith("num_batches_tracked")]
    if missing:
        report.append(f"{path.name}: not in the file or of another size, start at random: {some(missing, limit=4)}")
    if left:
        report.append(f"{path.name}: left in the file: {some(left, limit=4)}")
    return report


def load_matching(model: nn.Module, path: Path) -> tuple[set[str], list[str]]:
    """Take the weights of a checkpoint where names and sizes agree; name the rest.

    Returns:
        Names of the tensors taken, as in the model's state dict without wrappers, and lines for the log.

    Raises:
        CheckpointError: the file cannot be read.
        ConfigError: nothing agrees.
    """
    targets = _by_plain_name(model.state_dict(), WRAPPERS)
    sources = _by_plain_name(read_tensors(path), WRAPPERS)
    taken = {key for key, target in targets.items() if key in sources and sources[key].shape == target.shape}
    if not taken:
        raise ConfigError(
            f"model.init_from: no tensor of {path} agrees with the model in name and size; the file has "
            f"{some(list(sources), limit=4)}, the model wants {some(list(targets), limit=4)}: "
            "check model.arch and model.encoder"
        )
    for key in taken:
        targets[key].copy_(sources[key])
    report = [f"init_from {path}: {len(taken)} of {len(targets)} tensors taken"]
    for key in targets:
        if key in sources and key not in taken:
            found, expected = list(sources[key].shape), list(targets[key].shape)
            report.append(f"init_from: {key} skipped: {found} in the file, {expected} in the model")
    if missing := [key for key in targets if key not in sources]:
        report.append(f"init_from: not in the file, start as they were: {some(missing, limit=4)}")
    if left := [key for key in sources if key not in targets]:
        report.append(f"init_from: left in the file: {some(left, limit=4)}")
    return taken, report


def _by_plain_name(tensors: dict[str, Tensor], wrappers: tuple[str, ...]) -> dict[str, Tensor]:
    plain = {_strip(key, wrappers): value for key, value in tensors.items()}
    # timm's feature extractors call `stages.0` `stages_0`.
    dotted = {re.sub(r"_(\d+)(?=\.)", r".\1", key): value for key, value in plain.items()}
    return dotted if len(dotted) == len(plain) else plain


def _strip(key: str, wrappers: tuple[str, ...]) -> str:
    while wrapper := next((prefix for prefix in wrappers if key.startswith(prefix)), None):
        key = key.removeprefix(wrapper)
    return key


def _is_rgb_convolution(source: Tensor, target: Tensor, in_channels: int) -> bool:
    if in_channels == 3 or source.ndim != 4 or target.ndim != 4:
        return False
    channels = (source.shape[1], target.shape[1])
    return channels == (3, in_channels) and source[:, :1].shape == target[:, :1].shape


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
