"""The cache gives the very arrays that files give, follows their changes, and leaves nothing broken where it fails."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segtrain.config.data import DataConfig
from segtrain.data import check_split, pair_cache
from segtrain.data.dataset import EvalDataset, TrainDataset
from segtrain.data.loader import build_train_loader
from segtrain.data.pair_cache import CachedPairs, drop_changed, with_cache
from segtrain.data.pair_file import PairFile
from segtrain.data.sampling import TrainBatchSampler
from segtrain.data.sources import FilePairs, Pairs
from segtrain.errors import DataError

STEPS = [
    {"name": "crop", "size": [16, 16]},
    {"name": "horizontal_flip"},
    {"name": "color"},
    {"name": "noise", "p": 1.0},
]


@pytest.fixture
def shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /dev/shm."""
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(pair_cache, "SHARED_MEMORY", folder)
    return folder


@pytest.fixture
def pairs(folder_dataset: Callable[..., Any], shared_memory: Path) -> Callable[..., FilePairs]:
    """The files of a data set of 5 samples; the first call makes it."""
    made = folder_dataset(splits={"train": 5})

    def find(**changes: Any) -> FilePairs:
        data = DataConfig.model_validate(made.config["data"] | {"cache": "disk", "train_transforms": STEPS} | changes)
        return FilePairs(check_split(data, "train", show_progress=False).samples, data, split="train")

    return find


def cached(files: FilePairs, told: list[str] | None = None) -> Pairs:
    return with_cache(files, files.data, tell=(told if told is not None else []).append)


def assert_same(cache: Pairs, files: Pairs) -> None:
    assert len(cache) == len(files)
    for index in range(len(files)):
        for mine, theirs in zip(cache.read(index, seed=0), files.read(index, seed=0), strict=True):
            assert mine.dtype == theirs.dtype
            assert mine.flags.writeable
            np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(cache.read_target(index, seed=0), files.read_target(index, seed=0))


@pytest.mark.parametrize("kind", ["disk", "ram"])
def test_batches_from_the_cache_are_those_from_files(pairs: Callable[..., FilePairs], kind: str) -> None:
    files = pairs(cache=kind)
    cache = cached(files)
    assert isinstance(cache, CachedPairs)
    assert_same(cache, files)
    for workers in (0, 2):
        batches = []
        for source in (cache, files):
            loader = build_train_loader(
                TrainDataset(source, files.data), TrainBatchSampler(5, 2, seed=3), workers=workers
            )
            batches.append(list(loader))
            loader.close()
        for mine, theirs in zip(*batches, strict=True):
            for key in ("image", "target", "index"):
                assert torch.equal(mine[key], theirs[key])
    shown = EvalDataset(cache, files.data)[2], EvalDataset(files, files.data)[2]
    assert torch.equal(shown[0]["image"], shown[1]["image"])


def test_16_bits_and_sizes_that_differ_are_kept(pairs: Callable[..., FilePairs], tmp_path: Path) -> None:
    for kind, pixels in (("images", np.full((7, 9), 60_000, np.uint16)), ("masks", np.zeros((7, 9), np.uint8))):
        Image.fromarray(pixels).save(tmp_path / "dataset" / kind / "train" / "deep.png")
    files = pairs()
    cache = cached(files)
    assert_same(cache, files)
    assert cache.read(0, seed=0)[0].dtype == np.uint16


def test_it_is_built_once_and_told_with_its_size(pairs: Callable[..., FilePairs], tmp_path: Path) -> None:
    told: list[str] = []
    cached(pairs(), told)
    (file,) = (tmp_path / "dataset" / ".segtrain").glob("pairs-*.bin")
    written = file.stat().st_mtime_ns
    cached(pairs(), told)
    assert len(told) == 1
    assert "data.cache: disk: about 15.4 kB for split 'train'" in told[0]  # 5 x 24 x 32 x 4
    assert file.stat().st_mtime_ns == written
    assert file.stat().st_size >= 15_360


def test_changed_added_and_removed_files_are_noticed_and_the_others_not_read_again(
    pairs: Callable[..., FilePairs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(pairs())
    root = tmp_path / "dataset"
    (root / "images" / "train" / "scene_01.png").unlink()
    (root / "masks" / "train" / "scene_01.png").unlink()
    for kind, pixels in (("images", np.full((24, 32, 3), 9, np.uint8)), ("masks", np.ones((24, 32), np.uint8))):
        for name in ("scene_03", "new"):
            Image.fromarray(pixels).save(root / kind / "train" / f"{name}.png")
    files, plain = pairs(), pairs()
    read: list[int] = []
    monkeypatch.setattr(files, "read", lambda index: read.append(index) or plain.read(index))
    monkeypatch.setattr(pair_cache, "_measured_size", lambda _: 1)
    cache = cached(files)
    assert sorted(read) == [0, 3]  # new and scene_03
    assert_same(cache, plain)


def test_layers_of_classes_that_may_overlap_are_kept(pairs: Callable[..., FilePairs]) -> None:
    files = pairs(labels="multi_label", label_map={0: "none", 1: "block", 2: "dot", 255: "ignore"})
    assert_same(cached(files), files)
    assert files.read(0)[1].shape == (3, 24, 32)


def test_other_rules_never_use_old_targets(pairs: Callable[..., FilePairs]) -> None:
    cached(pairs())
    files = pairs(label_map={0: 0, 1: "dot", 2: "block", 255: "ignore"})
    assert_same(cached(files), files)
    assert_same(cached(pairs()), pairs())


def test_files_that_look_alike_but_are_others_are_told_apart(pairs: Callable[..., FilePairs], tmp_path: Path) -> None:
    """Two samples of one size and time: after a rename each must still be itself."""
    folder = tmp_path / "dataset" / "images" / "train"
    for number, name in enumerate(("scene_00", "scene_01")):
        Image.fromarray(np.full((24, 32, 3), number, np.uint8)).save(folder / f"{name}.png", compress_level=0)
        os.utime(folder / f"{name}.png", ns=(5, 5))
        os.utime(tmp_path / "dataset" / "masks" / "train" / f"{name}.png", ns=(5, 5))
    cached(pairs())
    (folder / "scene_00.png").rename(folder / "x.png")
    (folder / "scene_01.png").rename(folder / "scene_00.png")
    (folder / "x.png").rename(folder / "scene_01.png")
    (tmp_path / "dataset" / "masks" / "train" / "scene_04.png").unlink()
    (folder / "scene_04.png").unlink()
    # the swap itself shows in neither size nor time: that is what verifying is for
    assert drop_changed(pairs())
    assert_same(cached(pairs()), pairs())


def test_verifying_keeps_a_cache_that_is_right_and_drops_one_that_is_not(
    pairs: Callable[..., FilePairs], tmp_path: Path
) -> None:
    cached(pairs())
    assert drop_changed(pairs()) == []
    mask = tmp_path / "dataset" / "masks" / "train" / "scene_02.png"
    before = mask.stat()
    pixels = np.array(Image.open(mask))
    size = before.st_size
    pixels[0, 0] = 1 - min(int(pixels[0, 0]), 1)
    Image.fromarray(pixels).save(mask)
    mask.write_bytes(mask.read_bytes().ljust(size, b"\0")[: max(size, mask.stat().st_size)])
    os.utime(mask, ns=(before.st_atime_ns, before.st_mtime_ns))
    (dropped,) = drop_changed(pairs())
    assert not dropped.exists()
    assert_same(cached(pairs()), pairs())


@pytest.mark.parametrize("damage", [b"", b"rubbish", None])
def test_a_damaged_file_is_built_again(pairs: Callable[..., FilePairs], tmp_path: Path, damage: bytes | None) -> None:
    cached(pairs())
    (file,) = (tmp_path / "dataset" / ".segtrain").glob("pairs-*.bin")
    file.write_bytes(file.read_bytes()[:-5] if damage is None else damage)
    assert_same(cached(pairs()), pairs())


@pytest.mark.parametrize("kind", ["disk", "ram"])
def test_what_does_not_fit_is_refused_before_anything_is_written(
    pairs: Callable[..., FilePairs], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    files = pairs(cache=kind)
    monkeypatch.setattr(pair_cache, "_free_bytes", lambda path, kind: 16_000)
    with pytest.raises(DataError, match=rf"data.cache: {kind} needs about 15.4 kB for 5 samples .* 16 kB are free"):
        cached(files)
    assert not list(tmp_path.rglob("pairs-*.bin"))
    assert not list(tmp_path.rglob("*.tmp"))


def _fill(files: FilePairs, connection: Any) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))
    try:
        cached(files)
    except DataError as error:
        connection.send(str(error))
    else:
        connection.send("no error")


def test_a_disk_that_fills_up_leaves_the_old_cache_and_no_rest(pairs: Callable[..., FilePairs], tmp_path: Path) -> None:
    files = pairs()
    cached(files)
    (file,) = (tmp_path / "dataset" / ".segtrain").glob("pairs-*.bin")
    before = file.read_bytes()
    os.utime(tmp_path / "dataset" / "images" / "train" / "scene_00.png", ns=(7, 7))
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe()
    process = context.Process(target=_fill, args=(files, sender))
    process.start()
    assert receiver.poll(30)
    assert "cannot be written (File too large): make room there, or set data.cache: none" in receiver.recv()
    process.join()
    assert file.read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))


def _build_and_tell(files: FilePairs, barrier: Any, results: Any) -> None:
    told: list[str] = []
    barrier.wait()
    cache = cached(files, told)
    results.put((len(told), int(cache.read(3, seed=0)[0].sum())))


def test_processes_that_start_together_build_one_file_once(pairs: Callable[..., FilePairs]) -> None:
    files = pairs()
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_build_and_tell, args=(files, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert sum(told for told, _ in found) == 1
    assert {total for _, total in found} == {int(files.read(3)[0].sum())}


def test_a_worker_that_is_not_forked_opens_the_file_itself(pairs: Callable[..., FilePairs]) -> None:
    files = pairs()
    cache = cached(files)
    sent = pickle.dumps(cache)
    assert_same(pickle.loads(sent), files)
    assert_same(cache.select([3, 1]), files.select([3, 1]))


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(pair_cache.atexit, "register", lambda *call: calls.append(call))
    return calls


def test_ram_is_given_back_at_exit_by_the_process_that_took_it(
    pairs: Callable[..., FilePairs], shared_memory: Path, exits: list[tuple[Any, ...]]
) -> None:
    files = pairs(cache="ram")
    cache = cached(files)
    (file,) = shared_memory.rglob("*.bin")
    ((remove, path, process),) = exits
    remove(path, process + 1)  # a forked worker
    assert file.exists()
    remove(path, process)
    assert not list(shared_memory.rglob("*.*"))
    assert_same(cache, files)  # who has it mapped goes on


def test_the_file_holds_each_array_once(pairs: Callable[..., FilePairs], tmp_path: Path) -> None:
    cached(pairs())
    (path,) = (tmp_path / "dataset" / ".segtrain").glob("pairs-*.bin")
    file = PairFile(path)
    assert file.index.shapes.tolist() == [[[24, 32, 3], [24, 32, 0]]] * 5
    assert (file.index.offsets % 64 == 0).all()
