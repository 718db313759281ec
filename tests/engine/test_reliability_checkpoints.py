"""Checkpoints: any damage is noticed, and a run goes on from the newest one that is whole."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from segtrain.config import Config
from segtrain.engine import train
from segtrain.engine.checkpoint import FORMAT, load_checkpoint, save_checkpoint
from segtrain.engine.rotation import newest_whole, rotate, step_files
from segtrain.errors import CheckpointError


def payload(step: int) -> dict[str, Any]:
    weights = {"w": torch.full((500,), float(step))}
    return {"format": FORMAT, "config": {}, "step": step, "epoch": 0.0, "frequencies": {}, "model": weights}


def save(folder: Path, *steps: int, keep_last: int) -> Path:
    last = folder / "last.pt"
    for step in steps:
        save_checkpoint(last, payload(step))
        rotate(last, step=step, keep_last=keep_last)
    return last


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((500,), float(9)).numpy().tobytes()) + 700] ^= 0x10
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off": truncate,
    "a bit of a weight": flip,
    "empty": lambda path: path.write_bytes(b""),
    "a file of another kind": lambda path: path.write_text("not a checkpoint"),
    "weights of another program": lambda path: torch.save({"w": torch.zeros(2)}, path),
}


def test_a_flip_anywhere_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 3, keep_last=1)
    content = path.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 150)):
        damaged = bytearray(content)
        damaged[place] ^= 0x04
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"last\.pt"):
            load_checkpoint(path)


def test_the_last_n_are_kept_under_their_steps_in_the_room_of_n(tmp_path: Path) -> None:
    last = save(tmp_path, 2, 4, 6, 6, 8, keep_last=3)
    assert names(tmp_path) == ["last.pt", "step-00000004.pt", "step-00000006.pt", "step-00000008.pt"]
    assert [load_checkpoint(path)["step"] for _, path in step_files(tmp_path)] == [8, 6, 4]
    assert last.samefile(tmp_path / "step-00000008.pt")


def test_one_kept_checkpoint_is_last_alone(tmp_path: Path) -> None:
    save(tmp_path, 2, 4, keep_last=3)
    save(tmp_path, 6, keep_last=1)
    assert names(tmp_path) == ["last.pt"]


def test_a_run_that_goes_on_from_an_earlier_step_drops_the_course_that_it_left(tmp_path: Path) -> None:
    save(tmp_path, 2, 4, 6, keep_last=3)
    save(tmp_path, 3, keep_last=3)
    assert names(tmp_path) == ["last.pt", "step-00000002.pt", "step-00000003.pt"]


def test_where_the_disk_knows_no_links_copies_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    save(tmp_path, 2, 4, keep_last=2)
    assert names(tmp_path) == ["last.pt", "step-00000002.pt", "step-00000004.pt"]
    assert load_checkpoint(tmp_path / "step-00000004.pt")["step"] == 4

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(CheckpointError, match=r"step-00000006\.pt: No space left.*last\.pt is whole, and holds step 6"):
        save(tmp_path, 6, keep_last=2)
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 6
    assert names(tmp_path) == ["last.pt", "step-00000002.pt", "step-00000004.pt"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_last_checkpoint_is_told_and_the_newest_whole_one_taken(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 3, 6, 9, keep_last=3)
    shutil.copyfile(tmp_path / "last.pt", tmp_path / "copy")  # a name of its own: not the file of step 9
    (tmp_path / "copy").replace(tmp_path / "last.pt")
    DAMAGES[damage](tmp_path / "last.pt")
    DAMAGES[damage](tmp_path / "step-00000009.pt")
    told: list[str] = []
    found = newest_whole(tmp_path, tell=told.append)
    assert found is not None
    path, content = found
    assert (path.name, content["step"]) == ("step-00000006.pt", 6)
    assert len(told) == 3
    assert "last.pt" in told[0]
    assert told[2] == "warning: going on from step-00000006.pt, the newest whole checkpoint (step 6)"
    assert all("\n" not in line for line in told)


def test_one_file_under_two_names_is_told_once(tmp_path: Path) -> None:
    save(tmp_path, 3, 9, keep_last=2)
    flip(tmp_path / "last.pt")
    told: list[str] = []
    found = newest_whole(tmp_path, tell=told.append)
    assert found is not None
    assert found[1]["step"] == 3
    assert len(told) == 2


def test_without_last_the_newest_numbered_one_is_taken(tmp_path: Path) -> None:
    save(tmp_path, 3, 6, keep_last=2).unlink()
    told: list[str] = []
    found = newest_whole(tmp_path, tell=told.append)
    assert found is not None
    assert found[1]["step"] == 6
    assert told == ["warning: last.pt is gone: going on from step-00000006.pt, the newest whole checkpoint (step 6)"]


def test_where_none_is_whole_the_run_does_not_begin_anew_by_itself(tmp_path: Path) -> None:
    assert newest_whole(tmp_path, tell=pytest.fail) is None
    save(tmp_path, 3, 6, keep_last=2)
    save_checkpoint(tmp_path / "best.pt", payload(3))
    for path in tmp_path.glob("step-*.pt"):
        truncate(path)
    with pytest.raises(CheckpointError, match=r"no whole checkpoint is left.*overwrite=true.*model\.init_from=.*best"):
        newest_whole(tmp_path, tell=lambda text: None)


def test_a_checkpoint_that_may_not_be_read_is_no_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = save(tmp_path, 3, 6, keep_last=2)
    opened = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path == last:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be read.*Permission denied"):
        newest_whole(tmp_path, tell=pytest.fail)


def run(config: Config, model: nn.Module) -> str:
    text = io.StringIO()
    train(config, model=model, console=Console(file=text, width=300))
    return text.getvalue()


def test_a_run_goes_on_from_the_newest_whole_checkpoint_to_the_same_bits(
    tiny_config: Callable[..., Config], tiny_net: type[nn.Module]
) -> None:
    options = {"batch_size": 2, "steps": 6, "evaluate_every": 2, "evaluate_unit": "steps", "keep_last": 2}
    config = tiny_config(train=options)
    run(config, tiny_net())
    folder = Path(config.output) / config.name / "checkpoints"
    assert names(folder) == ["best.pt", "last.pt", "step-00000004.pt", "step-00000006.pt"]
    expected = load_checkpoint(folder / "last.pt")
    truncate(folder / "last.pt")
    truncate(folder / "best.pt")
    text = " ".join(run(tiny_config(train=options | {"resume": "auto"}), tiny_net()).split())
    assert "going on from step-00000004.pt, the newest whole checkpoint (step 4)" in text
    assert "best.pt is damaged" in text
    assert "the search for the best begins anew" in text
    found = load_checkpoint(folder / "last.pt")
    assert found["step"] == 6
    assert all(torch.equal(found["model"][key], value) for key, value in expected["model"].items())
    assert load_checkpoint(folder / "best.pt")["step"] == 6
