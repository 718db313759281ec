"""Says what is near a training file or a run that is not there."""

from __future__ import annotations

from pathlib import Path

from segtrain.errors import closest, natural_key, some


def missing_file(path: Path) -> str:
    """Return the message for a training file that is not there; one in configs/ beside it may be meant too."""
    siblings = _training_files(path.parent)
    others = _training_files(path.parent / "configs")
    meant = closest(path.stem, siblings) or closest(path.stem, others)
    if meant is not None:
        return f"{path}: no such file; did you mean '{siblings.get(meant) or others[meant]}'?"
    if siblings:
        names = [found.name for found in siblings.values()]
        return f"{path}: no such file; {path.parent} holds: {some(names, limit=10)}"
    return f"{path}: no such file" + (f"; there are: {some(list(others.values()), limit=10)}" if others else "")


def _training_files(folder: Path) -> dict[str, Path]:
    """Return the YAML files of a folder by their stems; hidden ones are the settings of tools."""
    files = sorted(folder.glob("*.y*ml")) if folder.is_dir() else []
    return {path.stem: path for path in files if not path.name.startswith(".")}


def near_runs(folder: Path) -> str:
    """Return what to say of the runs beside a folder that is not there: the one that may be meant, or all; or ""."""
    near = [path.parent.name for path in folder.parent.glob("*/config.yaml")] if folder.parent.is_dir() else []
    meant = closest(folder.name, near)
    if meant is not None:
        return f"; did you mean {folder.parent / meant}?"
    names = sorted(near, key=natural_key)
    return f"; runs there: {some(names, limit=10)}" if near else ""
