"""Two ranks train as one process with their batches together would, resume exactly, and agree on everything else."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console

from segtrain.engine import train
from segtrain.engine.checkpoint import load_checkpoint
from segtrain.errors import CheckpointError

SECONDS = 480
SCENARIOS = Path(__file__).with_name("ddp_scenarios.py")

pytestmark = pytest.mark.distributed


def load_scenarios() -> ModuleType:
    """The file that the ranks run, to run parts of it in this process."""
    spec = importlib.util.spec_from_file_location("ddp_scenarios", SCENARIOS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, folder_dataset_in: Callable[..., Any]) -> dict[str, Any]:
    """The configuration that all scenarios vary, of 10 training images, 3 for validation and a split of one."""
    dataset = folder_dataset_in(tmp_path_factory.mktemp("ddp"), splits={"train": 10, "val": 3, "one": 1})
    config: dict[str, Any] = dataset.config
    config["data"] |= {"train_transforms": [{"name": "horizontal_flip"}], "splits": {"train": "train", "val": "val"}}
    return config


@pytest.fixture(scope="module")
def ranks(plain: dict[str, Any]) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    folder = Path(plain["output"]).parent
    (folder / "config.json").write_text(json.dumps(plain))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # what torchrun sets, without the seconds that it takes to start
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


@pytest.fixture(scope="module")
def alone(plain: dict[str, Any]) -> dict[str, Any]:
    """What one process finds with batches of twice the size."""
    found: dict[str, Any] = load_scenarios().train_comparable(plain, ranks=1, name="one")
    return found


def both(ranks: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """What both ranks found alike."""
    found: dict[str, Any] = ranks[0][name]
    assert ranks[1][name] == found
    return found


def test_two_ranks_end_with_the_weights_of_one_process_on_the_whole_batch(
    ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    assert len(alone) == 4
    for case, expected in alone.items():
        for rank in ranks:
            found = rank["comparable"][case]
            torch.testing.assert_close(
                torch.tensor(found["weights"]), torch.tensor(expected["weights"]), rtol=1e-4, atol=1e-6, msg=case
            )
        assert ranks[0]["comparable"][case]["weights"] == ranks[1]["comparable"][case]["weights"]


def test_logged_numbers_and_scores_are_those_of_all_ranks(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for case, expected in alone.items():
        found = ranks[0]["comparable"][case]
        assert found["num_images"] == expected["num_images"] == 3
        assert len(found["logged"]) == len(expected["logged"]) > 2
        for line, wanted in zip(found["logged"], expected["logged"], strict=True):
            assert line.keys() == wanted.keys()
            for key in line.keys() - {"images_per_second", "data_wait", "kind"}:
                assert line[key] == pytest.approx(wanted[key], rel=2e-3, abs=1e-5), (case, line["step"], key)
        for rank in ranks:
            assert rank["comparable"][case]["scores"] == found["scores"]
            assert rank["comparable"][case]["loss"] == found["loss"]


def test_ranks_stop_together_and_go_on_to_the_same_bits(ranks: list[dict[str, Any]]) -> None:
    found = both(ranks, "resumed")
    # a signal to one rank in step 2 stops both after step 3, one in the evaluation there stops both in it
    assert found["stopped"] == [[signal.SIGTERM, 3], [signal.SIGTERM, 3], [None, 6]]
    assert found["equal"]
    assert found["rng_equal"]
    assert found["rng_differs_between_ranks"]
    assert found["logs"][0] == found["logs"][1]


def test_another_number_of_ranks_goes_on_if_the_batch_of_all_stays(
    ranks: list[dict[str, Any]], plain: dict[str, Any]
) -> None:
    scenarios = load_scenarios()
    folder = Path(plain["output"]) / "two-0"
    last = folder / "checkpoints" / "last.pt"
    (loss, _), *_ = scenarios.comparable().values()
    options = {"steps": 5, "resume": "auto", "evaluate_every": 9, "log_every": 2}
    with pytest.raises(CheckpointError, match=r"train\.batch_size × ranks was 2 × 2 and is 2 × 1"):
        scenarios.run(scenarios.variant(plain, "two-0", loss=loss, train=options | {"batch_size": 2}), scenarios.Net())
    told = io.StringIO()
    config = scenarios.variant(plain, "two-0", loss=loss, train=options | {"batch_size": 4})
    result = train(config, model=scenarios.Net(), console=Console(file=told, width=200))
    assert result.step == 5
    assert "2 ranks came to this step, and 1 go on" in " ".join(told.getvalue().split())
    assert load_checkpoint(last)["training"]["exposure"]["past"][-1] == 2 * 8  # images of the two whole epochs


def test_a_step_that_is_not_finite_on_one_rank_is_left_out_on_both(ranks: list[dict[str, Any]]) -> None:
    found = both(ranks, "poisoned")
    assert found["skipped"] == 1
    assert found["finite"]


def test_the_end_of_a_run_that_stays_not_finite_names_the_images_of_all_ranks(ranks: list[dict[str, Any]]) -> None:
    error = both(ranks, "hopeless")["error"]
    assert "not finite in 10 steps in a row" in error
    assert error.count("scene_") == 4  # batches of two


def test_a_loss_of_ones_own_is_the_mean_over_the_ranks(ranks: list[dict[str, Any]]) -> None:
    found = both(ranks, "own_loss")  # weights, too: those of the first rank are taken
    assert all(loss is None or loss > 0 for loss in found["losses"])


def test_what_several_ranks_cannot_do_is_refused_on_all(ranks: list[dict[str, Any]]) -> None:
    found = both(ranks, "refused")
    assert "10 training images does not fill one batch of 8 on each of 2 ranks" in found["few images"]
    assert "sync_batchnorm needs CUDA" in found["sync_batchnorm"]
    assert "without the argument reduce" in found["loss"]
    assert "differ in train.accumulate (rank 0: 1; rank 1: 2)" in found["differing"]


def test_an_evaluation_counts_each_image_once_whatever_the_number_of_ranks(
    ranks: list[dict[str, Any]], plain: dict[str, Any]
) -> None:
    alone = load_scenarios().evaluated(plain)
    assert (ranks[0]["evaluated"]["seen"], ranks[1]["evaluated"]["seen"]) == ([0, 2], [1])
    for rank in ranks:
        for key in ("matrix", "loss", "images", "one"):
            assert rank["evaluated"][key] == alone[key], key


def test_a_failure_in_the_evaluation_of_one_rank_is_one_on_both(ranks: list[dict[str, Any]]) -> None:
    assert ranks[1]["evaluated"]["failed"] == "a bad image"
    assert ranks[0]["evaluated"]["failed"] == "rank 1 of 2 stopped: a bad image"


def test_a_checkpoint_that_the_first_rank_cannot_write_ends_all_at_once(ranks: list[dict[str, Any]]) -> None:
    error = ranks[0]["unsaved"]["error"]
    assert "could not write" in error
    assert ranks[1]["unsaved"]["error"] == f"rank 0 of 2 stopped: {error}"


def test_the_drawn_samples_of_all_ranks_come_out_once_and_in_order(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["shown"]["tags"] == ["val/a", "val/b", "val/c"]


def test_an_error_on_one_rank_ends_the_other_with_its_reason(ranks: list[dict[str, Any]]) -> None:
    assert ranks[1]["failed"]["error"] == "the lights went out"
    assert ranks[0]["failed"]["error"] == "rank 1 of 2 stopped: the lights went out"
