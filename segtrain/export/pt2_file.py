"""pt2 files: an exported program of torch with its weights, which runs without the code of the model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram, load, save

from segtrain.errors import SegtrainError


def write_pt2(program: ExportedProgram, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Write a program with texts that `torch.export.load(path, extra_files=...)` gives back.

    Raises:
        SegtrainError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(program, path, extra_files=dict(metadata))
    # torch reports a failed write as RuntimeError, whatever the cause was
    except (OSError, RuntimeError) as error:
        raise SegtrainError(
            f"{path} cannot be written ({' '.join(str(error).split())[:200]}): make room there, or write elsewhere"
        ) from error


class Pt2Program:
    """A pt2 file on the CPU."""

    def __init__(self, path: Path) -> None:
        with warnings.catch_warnings():
            # torch 2.10 says so of the buffers that it reads itself
            warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
            self._module = load(path).module()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs of images [N, C, H, W] by name."""
        outputs: dict[str, Tensor] = self._module(images)
        return outputs


def read_metadata(path: Path, *keys: str) -> dict[str, str]:
    """Return the texts that a pt2 file carries under these keys."""
    texts: dict[str, str] = dict.fromkeys(keys, "")
    load(path, extra_files=texts)
    return texts
