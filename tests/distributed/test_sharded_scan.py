"""Two ranks share a scan: each reads its half, both get the whole, problems included, and the cache serves both.

Run as a script (`python test_sharded_scan.py RANK FOLDER`) this file is one of the ranks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import distributed as dist

from segtrain.config.data import DataConfig
from segtrain.data import check_split
from segtrain.data import frequencies as module
from segtrain.data.inspection import Inspector
from segtrain.errors import DataError

SECONDS = 60


def scan(data: DataConfig, **options: Any) -> dict[str, Any]:
    """What a rank sees, in plain values."""
    try:
        result = check_split(data, "train", show_progress=False, **options)
    except DataError as error:
        return {"error": str(error)}
    return {
        "names": result.names,
        "counts": result.counts.tolist(),
        "frequencies": result.frequencies.to_dict(),
        "problems": sorted(str(problem.path) for problem in result.problems),
        "num_read": result.num_read,
    }


def be_a_rank(rank: int, folder: Path) -> None:
    """Scan in a group of two, and write down what this rank saw and read."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2, timeout=timedelta(seconds=SECONDS)
    )
    data = DataConfig.model_validate(json.loads((folder / "data.json").read_text()))
    looked: list[str] = []

    class Watched(Inspector):
        def __call__(self, sample: Any) -> Any:
            looked.append(sample.name)
            return super().__call__(sample)

    module.Inspector = Watched
    skip = data.model_copy(update={"on_bad": "skip"})
    seen = {"strict": scan(data, cache=False), "skip": scan(skip)}
    first = sorted(looked[len(looked) // 2 :])
    dist.barrier()  # the cache is written by one rank
    looked.clear()
    seen |= {"warm": scan(skip), "looked": first, "looked_again": sorted(looked)}
    other = data.model_copy(update={"root": str(folder / "dataset" / "copies" / str(rank))})
    seen["disagreeing"] = scan(other, cache=False)
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_share_a_scan_and_both_get_all_of_it(tmp_path: Path, folder_dataset: Callable[..., Any]) -> None:
    made = folder_dataset(splits={"train": 7})
    root = made.root
    (root / "images" / "train" / "scene_03.png").write_bytes(b"")
    Image.fromarray(np.full((24, 32), 9, np.uint8)).save(root / "masks" / "train" / "scene_04.png")
    for rank in (0, 1):
        for kind in ("images", "masks"):
            (root / "copies" / str(rank) / kind / "train").mkdir(parents=True)
            for number in range(rank + 1):
                Image.new("L", (4, 4)).save(root / "copies" / str(rank) / kind / "train" / f"{number}.png")
    (tmp_path / "data.json").write_text(json.dumps(made.config["data"]))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__]
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment) for rank in (0, 1)]
    try:
        assert [rank.wait(SECONDS) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    zero, one = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    data = DataConfig.model_validate(made.config["data"] | {"on_bad": "skip"})
    alone = scan(data, cache=False)
    assert zero["skip"] == one["skip"] == alone
    assert alone["num_read"] == 7
    assert zero["looked"] == [f"scene_{number:02}" for number in (0, 2, 4, 6)]
    assert one["looked"] == [f"scene_{number:02}" for number in (1, 3, 5)]
    assert zero["warm"] == one["warm"] == alone | {"num_read": 2}  # what was bad is looked at again
    assert (zero["looked_again"], one["looked_again"]) == (["scene_04"], ["scene_03"])
    assert zero["strict"] == one["strict"]
    assert "2 bad files" in zero["strict"]["error"]
    for seen in (zero, one):
        assert "ranks see different samples" in seen["disagreeing"]["error"]
        assert "rank 0: 1 (0 to 0); rank 1: 2 (0 to 1)" in seen["disagreeing"]["error"]


@pytest.mark.distributed
@pytest.mark.slow
def test_the_command_reports_once_under_torchrun(tmp_path: Path, folder_dataset: Callable[..., Any]) -> None:
    made = folder_dataset(splits={"train": 5})
    (tmp_path / "config.yaml").write_text(json.dumps(made.config))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*launch, "-m", "segtrain.cli.main", "scan", "config.yaml", "--split", "train"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written: ") == 1
    (written,) = tmp_path.rglob("frequencies.json")
    alone = check_split(DataConfig.model_validate(made.config["data"]), "train", show_progress=False, cache=False)
    assert json.loads(written.read_text())["pixels"] == alone.frequencies.pixels.tolist()


if __name__ == "__main__":
    be_a_rank(int(sys.argv[1]), Path(sys.argv[2]))
