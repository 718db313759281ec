"""A model that is spread over two ranks trains as under DDP, resumes to the bit, and leaves checkpoints for anybody."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

from segtrain.config import parse_config
from segtrain.engine import evaluate, train
from segtrain.engine.checkpoint import load_checkpoint
from segtrain.engine.shard_files import (
    OTHER_NAMES,
    load_sharded,
    newest_sharded,
    read_metadata,
    sharded_folders,
    stored_sizes,
)
from segtrain.errors import CheckpointError, ConfigError

SECONDS = 480
SCENARIOS = Path(__file__).with_name("fsdp_scenarios.py")

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, folder_dataset_in: Callable[..., Any]) -> dict[str, Any]:
    """The configuration that all scenarios vary, of 10 training images and 3 for validation."""
    config: dict[str, Any] = folder_dataset_in(tmp_path_factory.mktemp("fsdp"), splits={"train": 10, "val": 3}).config
    config["optimizer"] = {"name": "adamw", "lr": 0.01, "clip_norm": 0.5}
    config["train"] = {
        **{"steps": 6, "batch_size": 2, "ema": 0.9, "log_every": 1, "validation_samples": 1},
        **{"evaluate_every": 3, "evaluate_unit": "steps", "keep_last": 2},
    }
    return config


@pytest.fixture(scope="module")
def ranks(plain: dict[str, Any]) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    folder = Path(plain["output"]).parent
    (folder / "config.json").write_text(json.dumps(plain))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if sys.platform == "linux":
        shared["GLOO_SOCKET_IFNAME"] = "lo"
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCENARIOS), str(folder)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        told = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(told)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture
def shards(ranks: list[dict[str, Any]], plain: dict[str, Any], tmp_path: Path) -> Path:
    """A copy of the checkpoints of the undisturbed run."""
    return shutil.copytree(Path(plain["output"]) / "whole" / "checkpoints", tmp_path / "checkpoints")


def stored(path: Path) -> dict[str, Tensor]:
    """All tensors of a sharded checkpoint, read by one process."""
    tensors = {name: torch.zeros(size) for name, size in stored_sizes(path).items()}
    dcp.load(tensors, checkpoint_id=path, no_dist=True)
    return tensors


def test_a_sharded_model_trains_as_one_that_each_rank_has(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        expected, found = rank["ddp"], rank["fsdp"]
        assert found["is_spread"]
        assert not expected["is_spread"]
        weights = [torch.tensor(each["weights"]) for each in (found, expected)]
        torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert found["matrix"] == expected["matrix"]
    assert ranks[0]["fsdp"]["weights"] == ranks[1]["fsdp"]["weights"]


def test_the_logs_of_a_sharded_run_are_those_of_ddp(ranks: list[dict[str, Any]], plain: dict[str, Any]) -> None:
    files = [Path(plain["output"]) / name / "metrics.jsonl" for name in ("fsdp", "ddp")]
    logs = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    assert len(logs[0]) == len(logs[1]) >= 8
    for found, expected in zip(*logs, strict=True):
        assert found.keys() == expected.keys()
        for key in found.keys() - {"images_per_second", "data_wait", "kind"}:
            wanted = expected[key]  # None where it was not finite
            close = wanted if wanted is None else pytest.approx(wanted, rel=1e-4, abs=1e-6)
            assert found[key] == close, (found["step"], key)
    assert [line["skipped_steps"] for line in logs[0] if line["kind"] == "train"] == [0, 0, 1, 1, 1, 1]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # true, and meant: one process reads it all
def test_a_sharded_run_stops_on_a_signal_and_goes_on_to_the_same_bits(
    ranks: list[dict[str, Any]], plain: dict[str, Any]
) -> None:
    for rank in ranks:
        assert rank["resumed"] == {"stopped": [signal.SIGTERM, 3, 6], "equal": True}
    folders = [sharded_folders(Path(plain["output"]) / name / "checkpoints")[0][1] for name in ("whole", "parts")]
    found, expected = (stored(folder) for folder in folders)
    assert any(name.startswith("ema.") for name in found)
    assert any(name.endswith(".exp_avg_sq") and bool(value.any()) for name, value in found.items())
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_best_is_whole_and_evaluates_in_one_process_as_on_the_ranks(
    ranks: list[dict[str, Any]], plain: dict[str, Any]
) -> None:
    payload = load_checkpoint(Path(plain["output"]) / "fsdp" / "checkpoints" / "best.pt")
    assert all(type(value) is Tensor for value in payload["model"].values())
    body = nn.Sequential(nn.Conv2d(3, 9, 3, padding=1, bias=False), nn.BatchNorm2d(9), nn.ReLU())
    model = nn.Sequential(body, nn.Conv2d(9, 3, 1))
    names = {"body": "0", "head": "1"}
    model.load_state_dict({f"{names[key[:4]]}{key[4:]}": value for key, value in payload["model"].items()})
    alone = evaluate(parse_config(plain), model=model)
    assert alone.confusion.matrix.tolist() == ranks[0]["fsdp"]["matrix"] == ranks[1]["fsdp"]["matrix"]


def test_a_save_that_was_torn_leaves_the_one_before_it_to_go_on_from(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        found = rank["torn"]
        assert "the disk is full" in found["error"]
        assert found["left"] == [".sharded-00000006.tmp", "best.pt", "sharded-00000003-2", "sharded-00000006"]
        assert found["step"] == 6
    assert ranks[0]["torn"]["weights"] == ranks[1]["torn"]["weights"]


def test_damage_is_noticed_and_the_checkpoint_before_it_taken(shards: Path) -> None:
    # each was saved ahead of the evaluation and after it
    newest, before = shards / "sharded-00000006-2", shards / "sharded-00000003-2"
    assert [path for _, path in sharded_folders(shards)] == [newest, before]
    file = newest / "__1_0.distcp"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    told: list[str] = []
    found = newest_sharded(shards, tell=told.append)
    assert found is not None
    assert (found[0], found[1]["step"]) == (before, 3)
    assert "__1_0.distcp" in told[0]
    (before / "run.pt").unlink()
    with pytest.raises(CheckpointError, match="no whole checkpoint is left"):
        newest_sharded(shards, tell=told.append)


class _Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_hostile_description_of_the_tensors_runs_no_code(shards: Path, tmp_path: Path) -> None:
    path, mark = sharded_folders(shards)[0][1], tmp_path / "mark"
    metadata = read_metadata(path)
    metadata.planner_data = _Payload(mark)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="describes no tensor"):
        read_metadata(path)
    assert not mark.exists()
    with pytest.raises(CheckpointError, match=r"\.metadata is not the file"):
        load_sharded(path)


def test_what_does_not_go_together_is_refused(ranks: list[dict[str, Any]], plain: dict[str, Any]) -> None:
    for rank in ranks:
        assert "channels_last" in rank["refused"]
        assert "optimizer.name: sgd" in rank["refused"]
        assert "train.parallel was 'fsdp' and is 'ddp'" in rank["other"]
    with pytest.raises(ConfigError, match="this is one process"):
        train(parse_config(plain | {"name": "alone", "train": plain["train"] | {"parallel": "fsdp"}}))


def test_a_description_asks_for_members_of_enumerations_and_layouts_alone() -> None:
    member, layout = OTHER_NAMES["builtins", "getattr"], OTHER_NAMES["torch.serialization", "_get_layout"]
    assert member(_MEM_FORMAT_ENCODING, "TORCH_CHANNELS_LAST") is _MEM_FORMAT_ENCODING.TORCH_CHANNELS_LAST
    assert layout("torch.strided") is torch.strided
    for ask in (lambda: member(torch, "load"), lambda: layout("torch.load"), lambda: member(str, "format")):
        with pytest.raises(pickle.UnpicklingError, match="describes no tensor"):
            ask()
