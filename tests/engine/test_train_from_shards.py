"""Training from tar shards is training from the folders they were packed from, bit for bit, stopped and resumed too."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segtrain.config import Config
from segtrain.engine import train

SAMPLING = {"name": "class_uniform"}


@pytest.fixture
def as_shards(tmp_path: Path) -> Callable[[Config], dict[str, Any]]:
    """Pack the splits of a folder data set into tars, train into two of them; returns what changes in its section."""

    def pack(config: Config) -> dict[str, Any]:
        root = tmp_path / "shards"
        root.mkdir()
        for split in ("train", "val"):
            images = sorted((Path(config.data.root) / "images" / split).iterdir())
            parts = [images[:4], images[4:]] if split == "train" else [images]
            for number, part in enumerate(parts):
                with tarfile.open(root / f"{split}-{number}.tar", "w") as tar:
                    for image in part:
                        tar.add(image, f"{image.stem}.image.png")
                        tar.add(Path(config.data.root) / "masks" / split / image.name, f"{image.stem}.mask.png")
        return {"root": str(root), "layout": "shards", "splits": {"train": "train-{0..1}.tar", "val": "val-*.tar"}}

    return pack


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_from_shards_equals_one_from_folders_in_bits(
    workers: int,
    tiny_config: Callable[..., Config],
    tiny_net: type[nn.Module],
    as_shards: Callable[[Config], dict[str, Any]],
) -> None:
    options = {"batch_size": 2, "evaluate_every": 4, "validation_samples": 1}
    data = {"sampling": SAMPLING, "workers": workers}
    optimizer = {"lr": 0.01, "schedule": {"name": "constant", "warmup_steps": 1}}
    whole = tiny_config(name="folders", train={**options, "steps": 8}, data=data, optimizer=optimizer)
    expected = train(whole, model=tiny_net())
    packed = data | as_shards(whole)
    train(tiny_config(name="tars", train={**options, "steps": 4}, data=packed, optimizer=optimizer), model=tiny_net())
    rest = tiny_config(name="tars", train={**options, "steps": 8, "resume": "auto"}, data=packed, optimizer=optimizer)
    found = train(rest, model=tiny_net())
    states = [
        torch.load(result.folder / "checkpoints" / "last.pt", weights_only=True)["model"]
        for result in (expected, found)
    ]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    assert expected.evaluation is not None
    assert found.evaluation is not None
    torch.testing.assert_close(found.evaluation.confusion.matrix, expected.evaluation.confusion.matrix, rtol=0, atol=0)
