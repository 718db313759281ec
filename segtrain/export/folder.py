"""The folder in which a model is shipped: weights as safetensors, a description as JSON, and a model card."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
from torch import nn

from segtrain.errors import CheckpointError, SegtrainError
from segtrain.export.card import model_card
from segtrain.export.description import Description, read_description
from segtrain.export.shipping import check_free, shippable_run
from segtrain.files import write_whole

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
WEIGHTS_KEY = "weights_sha256"


def save_pretrained(
    run: str | Path,
    out: Path | str | None = None,
    *,
    checkpoint: str = "best",
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Write a run's evaluated weights as a folder that `segtrain.load_model` takes; return the folder.

    It holds model.safetensors, config.json (classes, pre-processing, thresholds) and README.md, the model card. The
    same checkpoint gives the same bytes.

    Args:
        run: its folder, or a checkpoint file.
        out: default: <run folder>/export/<name>.
        checkpoint: best or last.
        overrides: `key=value`, as for evaluate.
        overwrite: replace a folder of an earlier export.

    Raises:
        ConfigError: `out` exists. CheckpointError: no usable checkpoint. SegtrainError: it cannot be written; what
        stood at `out` is as it was.
    """
    loaded, made = shippable_run(run, checkpoint=checkpoint, overrides=overrides)
    path = Path(out) if out is not None else loaded.folder / "export" / made.config.name
    check_free(path, overwrite=overwrite)
    if path.exists():
        _check_ours(path)
    card = model_card(made.description, made.config, frequencies=loaded.frequencies, overrides=overrides)
    unfinished = path.with_name(f".unfinished-{path.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        _write(unfinished, loaded.model, made.description, card)
        if path.exists():
            shutil.rmtree(path)
        unfinished.replace(path)
    except OSError as error:
        raise SegtrainError(f"{path} cannot be written ({error.strerror or error}): write to another folder") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return path


def _write(folder: Path, model: nn.Module, description: Description, card: str) -> None:
    # clones: safetensors refuses tensors that share memory
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    weights = safetensors.torch.save(tensors, metadata={"format": "pt"})
    content = {**description.to_json(), WEIGHTS_KEY: hashlib.sha256(weights).hexdigest()}
    write_whole(folder / WEIGHTS, weights)
    write_whole(folder / CONFIG, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    write_whole(folder / CARD, card.encode())


def _check_ours(path: Path) -> None:
    """Raise unless `path` is a folder of an earlier export: nothing else is ever deleted."""
    own = {CONFIG, WEIGHTS, CARD}
    found = {entry.name for entry in path.iterdir()} if path.is_dir() else {path.name}
    if not found <= own:
        raise SegtrainError(
            f"{path} holds more than an exported model ({', '.join(sorted(found - own)[:5])}), and --overwrite would "
            "delete it: choose another --out"
        )


def is_pretrained(path: Path) -> bool:
    """Return whether `path` is a folder of an exported model, whole or not."""
    return path.is_dir() and ((path / CONFIG).is_file() or (path / WEIGHTS).is_file())


def read_folder(path: Path) -> tuple[Description, Path]:
    """Return the description in a folder, and the file of weights, whose checksum is right.

    Raises:
        CheckpointError: a file is missing, damaged or of another version.
    """
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise CheckpointError(f"{path} is no whole exported model: {name} is missing in it; fetch it again")
    place = path / CONFIG
    try:
        text = place.read_text(encoding="utf-8")
        content = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{place} is damaged, it is no JSON ({error}): fetch it again") from error
    wanted = content.pop(WEIGHTS_KEY, None) if isinstance(content, dict) else None
    description = read_description(json.dumps(content), place=str(place))
    with (path / WEIGHTS).open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != wanted:
        raise CheckpointError(
            f"{path / WEIGHTS} is not the file that {CONFIG} belongs to (sha256 {found[:12]}…, expected "
            f"{str(wanted)[:12]}…): it is damaged or was replaced; fetch the folder again"
        )
    return description, path / WEIGHTS
