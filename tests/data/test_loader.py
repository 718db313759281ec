"""Batches are the same for any number of workers, and workers that fail or die are told clearly."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from segtrain.config.data import DataConfig
from segtrain.data import batches as batches_module
from segtrain.data.batches import fill_batch
from segtrain.data.dataset import EvalDataset, TrainDataset
from segtrain.data.formats import find_samples
from segtrain.data.loader import Loader, build_eval_loader, build_train_loader
from segtrain.data.sampling import TrainBatchSampler
from segtrain.data.sources import FilePairs
from segtrain.errors import DataError

AUGMENTED = [
    {"name": "random_scale"},
    {"name": "crop", "size": [16, 16]},
    {"name": "horizontal_flip"},
    {"name": "color"},
    {"name": "noise", "p": 1.0},
]


@pytest.fixture
def train_set(folder_dataset: Callable[..., Any]) -> Callable[..., TrainDataset]:
    def make(num: int = 10, steps: Any = AUGMENTED, **changes: Any) -> TrainDataset:
        made = folder_dataset(splits={"train": num})
        data = DataConfig.model_validate(made.config["data"] | {"train_transforms": steps} | changes)
        return TrainDataset(find_samples(data, "train").samples, data)

    return make


def batches_of(dataset: TrainDataset, workers: int, *, epoch: int = 0) -> list[dict[str, torch.Tensor]]:
    sampler = TrainBatchSampler(len(dataset), 4, seed=5, epoch=epoch)
    loader = build_train_loader(dataset, sampler, workers=workers)
    try:
        return list(loader)
    finally:
        loader.close()


def test_batches_are_stacked_as_stored(train_set: Callable[..., TrainDataset]) -> None:
    first, second = batches_of(train_set(), 0)
    assert first["image"].shape == (4, 3, 16, 16)
    assert first["target"].shape == (4, 16, 16)
    assert (first["image"].dtype, first["target"].dtype, first["index"].dtype) == (
        torch.uint8,
        torch.uint8,
        torch.int64,
    )
    assert len({*first["index"].tolist(), *second["index"].tolist()}) == 8


class OwnItems(TrainDataset):
    """Makes its items in a way of its own."""

    def __getitem__(self, key: tuple[int, int]) -> Any:
        item = super().__getitem__(key)
        return {**item, "image": torch.full_like(item["image"], 7)}


class OwnRead(TrainDataset):
    """Reads its files in a way of its own."""

    def read(self, index: int, *, seed: int = 0) -> Any:
        image, target = super().read(index, seed=seed)
        return np.full_like(image, 7), target


class OwnPairs(FilePairs):
    """The same, one step below."""

    def read(self, index: int, *, seed: int = 0) -> Any:
        image, target = super().read(index, seed=seed)
        return np.full_like(image, 7), target


@pytest.mark.parametrize("kind", [OwnItems, OwnRead, OwnPairs])
def test_what_a_subclass_reads_is_what_is_trained_on(train_set: Callable[..., TrainDataset], kind: Any) -> None:
    crop = [{"name": "crop", "size": [16, 16]}]
    plain = train_set(steps=crop)
    if kind is OwnPairs:
        plain.pairs = OwnPairs(plain.pairs.samples, plain.data, split="train")
    else:
        plain.__class__ = kind
    for batch in batches_of(plain, 0):
        assert batch["image"].unique().tolist() == [7]
        assert batch["image"].shape == (4, 3, 16, 16)


def test_a_batch_that_is_not_filled_is_no_batch() -> None:
    items = [{"image": np.zeros((2, 2, 3), np.uint8), "index": 0}] * 3

    class Short(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(items[:2])

    with pytest.raises(AssertionError, match="2 items of 3"):
        fill_batch(Short(items))
    with pytest.raises(AssertionError, match="item 1 has"):
        fill_batch([items[0], {"image": items[0]["image"]}])


def test_the_number_of_workers_changes_nothing(train_set: Callable[..., TrainDataset]) -> None:
    dataset = train_set()
    # OpenCV's own threads run before the workers start: they must not hang in what they inherit.
    cv2.calcHist([np.zeros((3000, 3000), np.uint8)], [0], None, [256], [0, 256])
    for epoch in (0, 1):
        for alone, together in zip(
            batches_of(dataset, 0, epoch=epoch), batches_of(dataset, 2, epoch=epoch), strict=True
        ):
            for key in ("image", "target", "index"):
                assert torch.equal(alone[key], together[key])


def test_a_batch_holds_the_items_of_its_keys_one_by_one(train_set: Callable[..., TrainDataset]) -> None:
    dataset = train_set(8)
    keys = next(iter(TrainBatchSampler(8, 4, seed=5)))
    for workers in (0, 1):
        batch = batches_of(dataset, workers)[0]
        for number, key in enumerate(keys):
            item = dataset[key]
            assert torch.equal(batch["image"][number], item["image"])
            assert torch.equal(batch["target"][number], item["target"])
            assert batch["index"][number] == item["index"] == key[0]


def test_what_is_read_ahead_changes_nothing_and_is_little_of_large_files(
    train_set: Callable[..., TrainDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, opened = train_set(6), []
    open_pair = dataset.pairs.open
    monkeypatch.setattr(dataset.pairs, "open", lambda index, seed: opened.append(index) or open_pair(index, seed=seed))
    keys = [(index, 7) for index in range(6)]
    expected = [dataset[key] for key in keys]
    of_first = dataset.samples[0].image.stat().st_size + dataset.read_target(0).nbytes
    for limit, ahead in ((10**9, 6), (0, 1), (of_first + 1, 2)):
        monkeypatch.setattr("segtrain.data.dataset.READ_AHEAD_BYTES", limit)
        opened.clear()
        items = dataset.each(keys)
        first = next(items)
        assert opened == list(range(ahead))
        for item, known in zip([first, *items], expected, strict=True):
            assert np.array_equal(item["image"], known["image"].permute(1, 2, 0).numpy())
            assert np.array_equal(item["target"], known["target"].numpy())
        assert opened == list(range(6))


def test_a_batch_made_here_is_pinned_on_request(
    train_set: Callable[..., TrainDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    (batch,) = build_train_loader(train_set(4), TrainBatchSampler(4, 4, seed=0), workers=0, pin_memory=True)
    assert len(pinned) == 3
    assert all(any(value is one for one in pinned) for value in batch.values())


def test_workers_stay_for_the_next_epoch_and_follow_its_position(train_set: Callable[..., TrainDataset]) -> None:
    dataset = train_set(12)
    sampler = TrainBatchSampler(12, 4, seed=5)
    loader = build_train_loader(dataset, sampler, workers=2)
    list(loader)
    workers = [worker.pid for worker in loader._iterator._workers]
    sampler.set_position(1, 1)
    rest = list(loader)
    assert [worker.pid for worker in loader._iterator._workers] == workers
    loader.close()
    expected = batches_of(dataset, 0, epoch=1)[1:]
    assert [batch["image"].sum() for batch in rest] == [batch["image"].sum() for batch in expected]


def test_an_image_drawn_twice_gets_two_augmentations(train_set: Callable[..., TrainDataset]) -> None:
    dataset = train_set()
    assert torch.equal(dataset[3, 1]["image"], dataset[3, 1]["image"])
    assert not torch.equal(dataset[3, 1]["image"], dataset[3, 2]["image"])


def test_the_global_generator_of_torch_is_left_alone(train_set: Callable[..., TrainDataset]) -> None:
    before = torch.get_rng_state()
    batches_of(train_set(), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_different_sizes_in_a_batch_name_the_remedy(train_set: Callable[..., TrainDataset]) -> None:
    dataset = train_set(steps=[{"name": "random_scale"}])
    for workers in (0, 2):
        with pytest.raises(DataError, match=r"images of a batch differ: .*data.input_size.*crop") as caught:
            batches_of(dataset, workers)
        assert "Traceback" not in str(caught.value)


def test_different_types_in_a_batch_are_refused() -> None:
    items = [{"image": np.zeros((4, 4, 3), dtype), "index": 0} for dtype in (np.uint8, np.uint16)]
    with pytest.raises(DataError, match="4x4 uint16, 4x4 uint8"):
        fill_batch(items)


def test_a_file_that_breaks_after_the_scan_is_named_without_a_traceback(train_set: Callable[..., TrainDataset]) -> None:
    dataset = train_set()
    dataset.samples[2].image.write_bytes(b"")
    for workers in (0, 2):
        with pytest.raises(DataError, match=r"scene_02.png: the file is empty") as caught:
            batches_of(dataset, workers)
        assert "\n" not in str(caught.value)


def test_a_mask_of_another_size_is_named(train_set: Callable[..., TrainDataset], save: Callable[..., Path]) -> None:
    dataset = train_set()
    save(str(dataset.samples[0].mask), np.zeros((5, 6), np.uint8))
    with pytest.raises(DataError, match=r"scene_00.png: the mask is 6x5, the image 32x24"):
        dataset.read(0)


def test_channels_that_files_do_not_have_are_refused(
    data_config: Callable[..., DataConfig], pair: Callable[..., Any]
) -> None:
    pair("a", np.zeros((4, 4), np.uint8))
    data = data_config(normalize={"mean": [0.5] * 4, "std": [0.5] * 4})
    with pytest.raises(DataError, match=r"a.png: .*3.*4"):
        EvalDataset(find_samples(data, "train").samples, data).read(0)


def test_evaluation_keeps_the_targets_size_and_the_order(
    folder_dataset: Callable[..., Any],
) -> None:
    made = folder_dataset(splits={"val": 5})
    data = DataConfig.model_validate(made.config["data"] | {"input_size": [12, 20]})
    dataset = EvalDataset(find_samples(data, "val").samples, data)
    for workers in (0, 2):
        loader = build_eval_loader(dataset, batch_size=2, workers=workers)
        batches = list(loader)
        loader.close()
        assert [[item["index"] for item in batch] for batch in batches] == [[0, 1], [2, 3], [4]]
        assert len(loader) == 3
        assert batches[0][0]["image"].shape == (3, 12, 20)
        assert batches[0][0]["target"].shape == (24, 32)


class Deadly(TrainDataset):
    """Ends the worker that reads sample 7, as the kernel does when memory runs out, once `may_die` is there."""

    may_die: Path

    def __getitem__(self, key: tuple[int, int]) -> Any:
        if key[0] == 7:
            # The batch before may still be in the hands of the worker's sending thread, and would die with it.
            while not self.may_die.exists():
                time.sleep(0.01)
            os._exit(1)
        return super().__getitem__(key)


class Slow(TrainDataset):
    """Takes its time."""

    def each(self, keys: Iterable[tuple[int, int]]) -> Iterator[Any]:
        for item in super().each(keys):
            time.sleep(0.1)
            yield item


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch looks after its workers every five seconds."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)


@pytest.mark.usefixtures("impatient")
def test_a_dead_worker_names_the_data_set_and_the_samples(
    train_set: Callable[..., TrainDataset], tmp_path: Path
) -> None:
    dataset = train_set(8)
    deadly = Deadly(dataset.samples, dataset.data)
    deadly.may_die = tmp_path / "may_die"
    handler = signal.getsignal(signal.SIGCHLD)
    loader = Loader(deadly, [[(0, 1), (1, 1)], [(6, 1), (7, 1)]], collate=list, workers=1, pin_memory=False)
    batches = iter(loader)
    next(batches)
    deadly.may_die.touch()
    with pytest.raises(DataError, match=r"read samples 6 to 7 of split 'train' of .*dataset.*data.workers: 0"):
        next(batches)
    loader.close()
    assert signal.getsignal(signal.SIGCHLD) is handler


class Faulty(TrainDataset):
    """Raises an error of our own making."""

    def each(self, keys: Iterable[tuple[int, int]]) -> Iterator[Any]:
        raise RuntimeError("shapes differ, and a pipe exited unexpectedly")


def test_an_error_in_a_living_worker_is_not_taken_for_its_death(train_set: Callable[..., TrainDataset]) -> None:
    dataset = train_set(4)
    loader = build_train_loader(Faulty(dataset.samples, dataset.data), TrainBatchSampler(4, 2, seed=0), workers=1)
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(loader)
    loader.close()


def test_workers_ignore_signals_and_are_ended_all_the_same(train_set: Callable[..., TrainDataset]) -> None:
    dataset = train_set(8)
    slow = Slow(dataset.samples, dataset.data)
    loader = build_train_loader(slow, TrainBatchSampler(8, 2, seed=0), workers=2)
    batches = iter(loader)
    next(batches)
    workers = [worker.pid for worker in loader._iterator._workers]
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    assert len(list(batches)) == 3
    loader.close()
    assert not any(_alive(pid) for pid in workers)


@pytest.mark.usefixtures("impatient")
def test_close_in_mid_epoch_ends_stuck_workers(train_set: Callable[..., TrainDataset]) -> None:
    dataset = train_set(8)
    loader = build_train_loader(Slow(dataset.samples, dataset.data), TrainBatchSampler(8, 2, seed=0), workers=2)
    next(iter(loader))
    workers = [worker.pid for worker in loader._iterator._workers]
    os.kill(workers[0], signal.SIGSTOP)
    loader.close()
    assert not any(_alive(pid) for pid in workers)


@pytest.mark.slow
def test_a_program_may_end_in_mid_epoch(train_set: Callable[..., TrainDataset], tmp_path: Path) -> None:
    (tmp_path / "dataset.pickle").write_bytes(pickle.dumps(train_set(8)))
    script = f"""
import pickle, pathlib
from segtrain.data.loader import build_train_loader
from segtrain.data.sampling import TrainBatchSampler
dataset = pickle.loads(pathlib.Path({str(tmp_path / "dataset.pickle")!r}).read_bytes())
batches = iter(build_train_loader(dataset, TrainBatchSampler(8, 2, seed=0), workers=2))
next(batches)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_loader_works_outside_the_main_thread(train_set: Callable[..., TrainDataset]) -> None:
    dataset, found = train_set(4), []
    thread = threading.Thread(target=lambda: found.extend(batches_of(dataset, 1)))
    thread.start()
    thread.join()
    assert len(found) == 1


def test_what_workers_receive_can_be_pickled(train_set: Callable[..., TrainDataset]) -> None:
    dataset = train_set()
    loader = build_train_loader(dataset, TrainBatchSampler(10, 2, seed=0), workers=1)
    assert loader._loader is not None
    guarded, collate = pickle.loads(pickle.dumps((loader._loader.dataset, loader._loader.collate_fn)))
    assert torch.equal(collate(guarded.__getitems__([(1, 2)]))["image"][0], dataset[1, 2]["image"])


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_batches_lie_in_memory_as_images_do(train_set: Callable[..., TrainDataset]) -> None:
    dataset = train_set()
    for workers in (0, 1):
        image = batches_of(dataset, workers)[0]["image"]
        assert image.is_contiguous(memory_format=torch.channels_last)


def test_what_workers_send_is_not_copied_into_shared_memory_on_its_way(
    train_set: Callable[..., TrainDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "get_worker_info", lambda: object())
    (item,) = train_set(1).each([(0, 1)])
    batch = fill_batch([item, item])
    assert all(tensor.is_shared() for tensor in batch.values())
    monkeypatch.undo()
    assert not any(tensor.is_shared() for tensor in fill_batch([item]).values())


def test_workers_read_as_many_batches_ahead_as_the_setting_says(train_set: Callable[..., TrainDataset]) -> None:
    dataset = train_set(12)
    for prefetch in (1, 3):
        loader = build_train_loader(dataset, TrainBatchSampler(12, 2, seed=0), workers=1, prefetch=prefetch)
        next(iter(loader))
        assert len(loader._recorded.pending) == prefetch
        loader.close()
