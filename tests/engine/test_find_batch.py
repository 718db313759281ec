"""The search for the largest batch finds the edge in few trials, makes real steps, and refuses a CPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from segtrain.cli.main import main
from segtrain.config import dump_config, parse_config
from segtrain.engine.find_batch import BatchSearch, BatchSteps, Trial, advice, search, split_batch
from segtrain.engine.setup import prepare
from segtrain.errors import SegtrainError


def _memory(limit: int, tried: list[int]) -> Callable[[int], int]:
    """Return a device that holds `limit` images of 3 bytes beside 10."""

    def try_batch(images: int) -> int:
        tried.append(images)
        if images > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 10 + 3 * images

    return try_batch


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 100, 127, 128, 1000])
@pytest.mark.parametrize("most", [1, 2, 3, 100, 128])
def test_the_edge_is_found_in_few_trials_and_no_batch_is_tried_twice(limit: int, most: int) -> None:
    tried: list[int] = []
    found = search(_memory(limit, tried), most=most)
    assert found.largest == min(limit, most)
    assert [trial.images for trial in found.trials] == tried
    assert len(set(tried)) == len(tried) <= 2 * most.bit_length() + 1
    assert max(tried) <= most
    assert all((trial.num_bytes is None) == (trial.images > limit) for trial in found.trials)
    if found.largest > 2:
        assert found.bytes_per_image() == pytest.approx(3.0)


def test_an_error_of_another_kind_is_not_taken_for_a_full_memory() -> None:
    def try_batch(images: int) -> int:
        raise RuntimeError("a label is out of range")

    with pytest.raises(RuntimeError, match="a label is out of range"):
        search(try_batch, most=8)


@pytest.mark.parametrize(
    ("images", "most", "expected"),
    [(8, 100, (8, 1)), (8, 5, (4, 2)), (12, 5, (4, 3)), (7, 3, (1, 7)), (32, 28, (16, 2))],
)
def test_the_images_of_a_step_stay_and_are_shared_out(images: int, most: int, expected: tuple[int, int]) -> None:
    assert split_batch(images, most=most) == expected


def test_the_advice_keeps_the_images_of_a_step_and_leaves_some_memory(folder_dataset: Callable[..., Any]) -> None:
    values = folder_dataset().config
    config = parse_config(values | {"train": values["train"] | {"batch_size": 8, "accumulate": 4}})
    lines = advice(BatchSearch((Trial(2, 2**30), Trial(18, 3 * 2**30)), 18), config, total_bytes=4 * 2**30)
    assert "18 images in 4.0 GiB, 128 MiB for each image more" in lines[0]
    assert "train.batch_size=16 train.accumulate=2" in lines[2]
    with pytest.raises(SegtrainError, match=r"not even one image fits into 4\.0 GiB"):
        advice(BatchSearch((Trial(2, None), Trial(1, None)), 0), config, total_bytes=4 * 2**30)


def test_a_trial_is_a_whole_step_with_that_many_images(
    tiny_config: Callable[..., Any], tiny_net: Callable[..., Any]
) -> None:
    model = tiny_net()
    shapes: list[torch.Size] = []
    model.register_forward_pre_hook(lambda _, arguments: shapes.append(arguments[0].shape))
    run = prepare(
        tiny_config(train={"steps": 100}),
        model=model,
        loss=None,
        train_data=None,
        val_data=None,
        console=Console(quiet=True),
    )
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with run.tracker, closing(run.loader):
        steps = BatchSteps(run)
        steps(5)
        steps(3)
    assert [shape[0] for shape in shapes] == [5, 5, 3, 3]
    assert len({shape[1:] for shape in shapes}) == 1
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_a_cpu_is_refused_with_the_reason(
    folder_dataset: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cfg.yaml"
    path.write_text(dump_config(parse_config(folder_dataset().config)), encoding="utf-8")
    assert main(["find-batch", str(path)]) == 2
    assert "find-batch fills the memory of a GPU, and the device is a CPU here" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.gpu
def test_a_batch_that_fits_a_gpu_is_found(
    folder_dataset: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cfg.yaml"
    path.write_text(dump_config(parse_config(folder_dataset().config)), encoding="utf-8")
    assert main(["find-batch", str(path), "device=cuda", "--most", "8"]) == 0
    assert "largest batch that fits: 8 images" in capsys.readouterr().out
