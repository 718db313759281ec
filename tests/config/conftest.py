"""Fixtures of the configuration tests: small training files on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

SMALL = """\
data:
  root: data/x
  classes: [background, crack]
train:
  epochs: 3
"""


@pytest.fixture
def training_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A factory of training files in the current folder: a small valid one, or `text`, with `more` after it."""
    monkeypatch.chdir(tmp_path)

    def write(text: str = SMALL, *, more: str = "", name: str = "experiment.yaml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + more, encoding="utf-8")
        return name

    return write
