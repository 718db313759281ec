"""Checkpoints are whole or absent, and reading one runs no code."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segtrain.engine.checkpoint import (
    FORMAT,
    find_checkpoint,
    load_checkpoint,
    load_weights,
    remove_leftovers,
    save_checkpoint,
)
from segtrain.errors import CheckpointError

KILL_SAVERS = """
import os, signal, sys, time, torch
from pathlib import Path
from segtrain.engine.checkpoint import load_checkpoint, save_checkpoint
torch.set_num_threads(1)  # a forked child must not wait for threads that it does not have
path = Path(sys.argv[1])
description = {"format": 1, "config": {}, "epoch": 0.0, "frequencies": {}}
for attempt in range(20):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        for step in range(1, 1_000_000):
            weights = {"w": torch.full((200_000,), float(step))}
            save_checkpoint(path, description | {"step": step, "model": weights})
            os.write(writer, b".")
    os.read(reader, 1)
    time.sleep(0.003 * attempt)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["model"]["w"], torch.full((200_000,), float(loaded["step"])))
"""


def payload(step: int = 1) -> dict[str, object]:
    weights = {"w": torch.full((4,), float(step))}
    return {"format": FORMAT, "config": {}, "step": step, "epoch": 0.0, "frequencies": {}, "model": weights}


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILL_SAVERS, str(tmp_path / "last.pt")], check=True, timeout=120)
    remove_leftovers(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_a_full_disk_is_a_clear_error_and_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, payload(1))
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        with pytest.raises(CheckpointError, match=r"could not write .*last\.pt.*intact.*train\.resume=auto"):
            save_checkpoint(path, payload(2) | {"big": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch hostile-was-here",))


def test_a_hostile_checkpoint_is_refused_and_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": FORMAT, "config": {}, "model": Hostile()}, tmp_path / "zip.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps({"format": FORMAT, "config": Hostile()}))
    for name in ("zip.pt", "bare.pt"):
        with pytest.raises(CheckpointError, match=r"nothing in it was run|damaged"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "hostile-was-here").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken zip"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"last\.pt (is damaged|is not a file of|cannot be read|holds no)"):
        load_checkpoint(path)


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, payload())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(path)


def test_bare_weights_are_pointed_to_init_from(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"model\.init_from"):
        load_checkpoint(tmp_path / "weights.pt")


def test_a_later_format_says_which_versions_are_at_odds(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", payload() | {"format": FORMAT + 1})
    with pytest.raises(CheckpointError, match=f"format {FORMAT + 1}, this segtrain .* reads {FORMAT}"):
        load_checkpoint(tmp_path / "last.pt")


def test_a_misspelt_run_is_answered_with_the_one_that_is_there(tmp_path: Path) -> None:
    for name in ("try10", "try9", "crack"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    with pytest.raises(CheckpointError, match=r"/crck does not exist; did you mean .*/crack\?$"):
        find_checkpoint(tmp_path / "crck")
    with pytest.raises(CheckpointError, match=r"/mine does not exist; runs there: crack, try9, try10$"):
        find_checkpoint(tmp_path / "mine")
    with pytest.raises(CheckpointError, match=r"nothing/here does not exist: give a run folder"):
        find_checkpoint(tmp_path / "nothing" / "here")


def test_a_run_folder_means_its_best_checkpoint_unless_the_last_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)
    last, best = tmp_path / "checkpoints" / "last.pt", tmp_path / "checkpoints" / "best.pt"
    save_checkpoint(last, payload())
    assert find_checkpoint(tmp_path) == last
    save_checkpoint(best, payload())
    assert find_checkpoint(tmp_path) == best
    assert find_checkpoint(tmp_path, "last") == last
    assert find_checkpoint(best) == best


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    with pytest.raises(
        CheckpointError, match=r"missing bias; weight is \(2, 4\) in the file and \(2, 3\) in the model"
    ):
        load_weights(model, {"weight": torch.zeros(2, 4)}, path=tmp_path / "x.pt")


def test_a_checkpoint_that_lacks_a_part_is_named(tmp_path: Path) -> None:
    content = payload()
    del content["model"]
    save_checkpoint(tmp_path / "last.pt", content)
    with pytest.raises(CheckpointError, match="no whole checkpoint: model is missing"):
        load_checkpoint(tmp_path / "last.pt")
