"""Samples in tar shards are those of the same files in folders, in any order, from disk or a URL; bad tars say so."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import shutil
import tarfile
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from segtrain.config.data import DataConfig
from segtrain.data.formats import find_samples, mask_reader
from segtrain.data.formats.shards import expand_braces
from segtrain.data.frequencies import check_split, scan_split
from segtrain.data.pair_cache import with_cache
from segtrain.data.shards import Member, remote
from segtrain.data.sources import FilePairs
from segtrain.data.splits import gather
from segtrain.errors import ConfigError, DataError

Members = list[tuple[str, bytes]]
MASK = np.array([[0, 1, 2, 255]] * 4, np.uint8)


def encoded(pixels: Any, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(stream, kind)
    return stream.getvalue()


def picture(number: int) -> Any:
    return np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)


def mask(number: int) -> Any:
    return np.roll(MASK, number, axis=1) if number % 2 else MASK


def samples_of(numbers: range) -> Members:
    """As webdataset's TarWriter sorts them: by key, and the files of a key one after another."""
    return [
        one
        for number in numbers
        for one in ((f"{number:04}.jpg", encoded(picture(number), "JPEG")), (f"{number:04}.png", encoded(mask(number))))
    ]


def tar_bytes(members: Members, *, float_times: bool = True) -> bytes:
    """A tar as webdataset's TarWriter makes it: streamed, with members of mode 0444 and times that are floats, which
    stand in extended headers."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w|") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uname, info.gname = len(data), 0o444, "bigdata", "bigdata"
            info.mtime = 1700000000.25 if float_times else 1700000000
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture
def shard(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, members: Members | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(members if isinstance(members, bytes) else tar_bytes(members))
        return path

    return write


@pytest.fixture
def config(data_config: Callable[..., DataConfig]) -> Callable[..., DataConfig]:
    def make(**changes: Any) -> DataConfig:
        return data_config(**({"layout": "shards", "splits": {"train": "train-{00..01}.tar"}} | changes))

    return make


@pytest.fixture
def two_shards(shard: Callable[..., Path]) -> tuple[Path, Path]:
    return shard("train-00.tar", samples_of(range(3))), shard("train-01.tar", samples_of(range(3, 5)))


@pytest.fixture
def memory() -> Iterator[Any]:
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()


def as_folders(root: Path, numbers: range) -> DataConfig:
    for number in numbers:
        for folder, suffix, data in (
            ("images", "jpg", encoded(picture(number), "JPEG")),
            ("masks", "png", encoded(mask(number))),
        ):
            path = root / folder / "train" / f"{number:04}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return DataConfig.model_validate({"root": str(root), "classes": ["background", "block", "dot"]})


def problems_of(config: DataConfig) -> list[str]:
    return [
        f"{problem.path}: {problem.reason}" for problem in scan_split(config, "train", show_progress=False).problems
    ]


def assert_same_pairs(one: DataConfig, other: DataConfig) -> None:
    scans = [check_split(each, "train", show_progress=False) for each in (one, other)]
    np.testing.assert_array_equal(scans[0].counts, scans[1].counts)
    pairs = [FilePairs(scan.samples, each, split="train") for scan, each in zip(scans, (one, other), strict=True)]
    assert len(pairs[0]) == len(pairs[1]) > 0
    for index in reversed(range(len(pairs[0]))):  # any order
        for mine, theirs in zip(pairs[0].read(index), pairs[1].read(index), strict=True):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.usefixtures("two_shards")
def test_shards_hold_the_same_samples_as_folders(config: Callable[..., DataConfig], tmp_path: Path) -> None:
    found = find_samples(config(), "train")
    assert [sample.name for sample in found.samples] == [
        "train-00/0000", "train-00/0001", "train-00/0002", "train-01/0003", "train-01/0004",
    ]  # fmt: skip
    assert_same_pairs(config(), as_folders(tmp_path / "folders", range(5)))


@pytest.mark.usefixtures("two_shards")
def test_samples_survive_the_way_to_a_worker(config: Callable[..., DataConfig]) -> None:
    pairs = FilePairs(find_samples(config(), "train").samples, config(), split="train")
    copied = pickle.loads(pickle.dumps(pairs)).select([4, 0])
    np.testing.assert_array_equal(copied.read(0)[0], pairs.read(4)[0])
    assert str(copied.samples[1].image) == str(pairs.samples[0].image)
    assert isinstance(copied.samples[0].mask, Member)


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_shards_behind_a_url_hold_the_same(
    protocol: str, config: Callable[..., DataConfig], tmp_path: Path, memory: Any
) -> None:
    place = "memory://bucket/set" if protocol == "memory" else f"file://{tmp_path}/elsewhere"
    for name, numbers in (("a-0", range(3)), ("a-1", range(3, 5))):
        with fsspec.open(f"{place}/{name}.tar", "wb", auto_mkdir=True) as stream:
            stream.write(tar_bytes(samples_of(numbers)))
    folders = as_folders(tmp_path / "folders", range(5))
    for pattern in ("a-{0..1}.tar", "a-*.tar", ""):
        assert_same_pairs(config(splits={"train": f"{place}/{pattern}"}), folders)
    image = find_samples(config(splits={"train": f"{place}/a-{{0..1}}.tar"}), "train").samples[0].image
    assert str(image) == f"{place}/a-0.tar/0000.jpg"


def test_a_changed_url_is_indexed_and_counted_again(config: Callable[..., DataConfig], memory: Any) -> None:
    data = config(splits={"train": "memory://set/a.tar"})
    memory.pipe("memory://set/a.tar", tar_bytes(samples_of(range(2))))
    assert check_split(data, "train").num_read == 2
    assert check_split(data, "train").num_read == 0
    memory.pipe("memory://set/a.tar", tar_bytes(samples_of(range(2, 5))))
    assert check_split(data, "train").num_read == 3


@pytest.mark.parametrize(
    ("names", "section"),
    [
        (("k.image.png", "k.mask.png"), {}),
        (("a/k.JPG", "a/k.PNG"), {}),
        (("k.tif", "k.png"), {}),
        (("k.rgb.png", "k.seg.png"), {"image": "rgb.png", "mask": "seg.png"}),
        (("k.jpg", "k.seg.png"), {"mask": "seg.png"}),
        (("k.png", "k.mask.png"), {}),
    ],
)
def test_image_and_mask_are_told_apart(
    names: tuple[str, str], section: dict[str, str], config: Callable[..., DataConfig], shard: Callable[..., Path]
) -> None:
    kinds = {"jpg": "JPEG", "tif": "TIFF", "png": "PNG"}
    members = [
        (name, encoded(pixels, kinds[name.rpartition(".")[2].lower()]))
        for name, pixels in zip(names, (picture(0), MASK), strict=True)
    ]
    shard(
        "one.tar", [("README", b"text"), (".hidden.png", b""), (names[0].partition(".")[0] + ".json", b"{}"), *members]
    )
    data = config(splits={"train": "one.tar"}, shards=section)
    (sample,) = check_split(data, "train").samples
    assert (str(sample.image), str(sample.mask)) == tuple(f"{data.root}/one.tar/{name}" for name in names)
    np.testing.assert_array_equal(mask_reader(data)(sample), MASK)


def test_a_folder_stands_for_its_tars_in_order(config: Callable[..., DataConfig], shard: Callable[..., Path]) -> None:
    shard("train/b.tar", samples_of(range(1)))
    shard("train/a.tar", samples_of(range(1, 2)))
    shard("train/notes.txt", b"no shard")
    names = [sample.name for sample in find_samples(config(splits={"train": "train"}), "train").samples]
    assert names == ["train/a/0001", "train/b/0000"]


def test_braces_stand_for_ranges_and_lists() -> None:
    assert expand_braces("s{a,b}-{08..10}.tar") == [
        f"s{part}-{number}.tar" for part in "ab" for number in ("08", "09", "10")
    ]
    assert expand_braces("{9..10}") == ["9", "10"]
    for wrong in ("{}", "{5..2}", "{a}"):
        with pytest.raises(DataError, match=r"\{000\.\.146\}"):
            expand_braces(wrong)


def test_a_second_look_reads_no_shard(
    config: Callable[..., DataConfig], two_shards: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = find_samples(config(), "train").samples
    opened = []
    monkeypatch.setattr("segtrain.data.shards.Shard.open", lambda shard: opened.append(shard.location))
    assert find_samples(config(), "train").samples == first
    assert opened == []


def test_only_a_changed_shard_is_read_again(config: Callable[..., DataConfig], two_shards: tuple[Path, Path]) -> None:
    assert check_split(config(), "train").num_read == 5
    before = two_shards[1].stat()
    two_shards[1].write_bytes(tar_bytes(samples_of(range(5, 7))))
    os.utime(two_shards[1], ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    result = check_split(config(), "train")
    assert (result.num_read, result.names[-1]) == (2, "train-01/0006")


@pytest.mark.usefixtures("two_shards")
def test_index_and_counts_travel_with_the_folder(
    config: Callable[..., DataConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = check_split(config(), "train").counts
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path, moved)  # times are kept
    monkeypatch.setattr("segtrain.data.shards.Shard.read", None)
    monkeypatch.setattr("segtrain.data.shards.Shard.open", None)
    result = check_split(config(root=str(moved)), "train")
    assert result.num_read == 0
    np.testing.assert_array_equal(result.counts, expected)


def test_a_shard_that_changes_in_use_is_refused(
    config: Callable[..., DataConfig], two_shards: tuple[Path, Path]
) -> None:
    pairs = FilePairs(find_samples(config(), "train").samples, config(), split="train")
    two_shards[0].write_bytes(tar_bytes(samples_of(range(6, 9))) + bytes(512))
    with pytest.raises(DataError, match=r"train-00\.tar/0000\.jpg.*changed while it was in use"):
        pairs.read(0)


def bad_tar(kind: str) -> bytes:
    whole = samples_of(range(2))
    plain = tar_bytes(whole, float_times=False)
    if kind == "link":
        stream = io.BytesIO(tar_bytes(whole))
        with tarfile.open(fileobj=stream, mode="a:") as tar:
            info = tarfile.TarInfo("0009.jpg")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
        return stream.getvalue()
    return {
        "cut": plain[: plain.index(b"0001.png") + 512 + 20],
        "no end": plain[: -(-len(plain.rstrip(b"\0")) // 512) * 512],
        "joined": tar_bytes(whole) + tar_bytes(samples_of(range(2, 4))),
        "damaged": plain.replace(b"0001.jpg", b"0002.jpg"),
        "twice": tar_bytes([*whole, whole[0]]),
        "no mask": tar_bytes(whole[:3]),
        "no image": tar_bytes([*whole[:2], ("0001.mask.png", encoded(MASK))]),
        "which": tar_bytes([*whole, ("0000.webp", b"x")]),
        "absolute": tar_bytes([*whole, ("/etc/0007.jpg", b"x")]),
        "outside": tar_bytes([*whole, ("../0007.jpg", b"x")]),
        "gzip": b"\x1f\x8b" + bytes(100),
        "text": b"no tar at all" * 100,
        "empty": b"",
        "nothing": tar_bytes([]),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cut", r"train-00\.tar/0001\.png: key 0001: truncated with the shard"),
        ("no end", r"train-00\.tar: truncated: it ends at byte \d+ without the zeros"),
        ("joined", r"train-00\.tar: more follows the end of the tar file at byte \d+"),
        ("damaged", r"train-00\.tar: damaged: byte \d+ should open the header"),
        ("twice", r"train-00\.tar/0000\.jpg: key 0000: two files \.jpg in one shard"),
        ("no mask", r"train-00\.tar/0001: key 0001: no mask; the shard has of it: \.jpg"),
        ("no image", r"train-00\.tar/0001: key 0001: no image; the shard has of it: \.mask\.png"),
        ("which", r"train-00\.tar/0000: key 0000: which file is the image, .*data\.shards\.image"),
        ("link", r"train-00\.tar/0009\.jpg: key 0009: a link"),
        ("absolute", r"train-00\.tar/.*0007\.jpg: an absolute name"),
        ("outside", r"train-00\.tar/\.\./0007\.jpg: an absolute name, or one that leads outside"),
        ("gzip", r"train-00\.tar: a gzip file"),
        ("text", r"train-00\.tar: a damaged or truncated tar file"),
        ("empty", r"train-00\.tar: .*(empty|truncated)"),
        ("nothing", r"train-00\.tar: the shard holds no samples"),
    ],
)
def test_a_bad_shard_is_reported_with_its_key(
    kind: str, expected: str, config: Callable[..., DataConfig], shard: Callable[..., Path]
) -> None:
    shard("train-00.tar", bad_tar(kind))
    shard("train-01.tar", samples_of(range(3, 4)))
    for _ in range(2):  # nor is it forgotten with the index
        with pytest.raises(DataError, match=expected):
            check_split(config(), "train")
    kept = check_split(config(on_bad="skip"), "train")
    assert kept.names[-1] == "train-01/0003"
    for sample in kept.samples:
        FilePairs([sample], config(), split="train").read(0)


def test_a_tar_cut_anywhere_never_yields_a_wrong_sample(
    config: Callable[..., DataConfig], shard: Callable[..., Path]
) -> None:
    whole = tar_bytes(samples_of(range(2)), float_times=False)
    end = len(whole.rstrip(b"\0"))
    for length in range(0, end, 400):
        shard("train-00.tar", whole[:length])
        data = config(splits={"train": "train-00.tar"})
        found = scan_split(data, "train", show_progress=False)
        assert found.problems
        for sample in found.samples:
            np.testing.assert_array_equal(mask_reader(data)(sample), mask(int(sample.name[-4:])))


@pytest.mark.usefixtures("two_shards")
def test_files_in_shards_are_checked_as_files_are(
    config: Callable[..., DataConfig], shard: Callable[..., Path]
) -> None:
    jpeg, png = encoded(picture(0), "JPEG"), encoded(MASK)
    shard("train-00.tar", [
        ("a.jpg", jpeg[:-20]), ("a.png", png),
        ("b.jpg", jpeg), ("b.png", encoded(MASK + 5)),
        ("c.jpg", jpeg), ("c.png", encoded(MASK[:2])),
        ("d.jpg", png), ("d.png", png),
        ("e.jpg", b""), ("e.png", png),
    ])  # fmt: skip
    found = "\n".join(problems_of(config()))
    for expected in (
        "train-00.tar/a.jpg: truncated JPEG",
        "train-00.tar/b.png: unknown mask values",
        "train-00.tar/c.png: the mask is 4x2",
        "train-00.tar/d.jpg: the name ends in .jpg, but the file is PNG",
        "train-00.tar/e.jpg: the file is empty",
    ):
        assert expected in found


def test_missing_and_repeated_shards_are_errors(config: Callable[..., DataConfig], shard: Callable[..., Path]) -> None:
    shard("train-00.tar", samples_of(range(2)))
    with pytest.raises(DataError, match=r"train-01\.tar: no such shard"):
        check_split(config(), "train")
    with pytest.raises(DataError, match="no tar files"):
        check_split(config(splits={"train": "none-*.tar"}), "train")
    with pytest.raises(DataError, match="more than once"):
        check_split(config(splits={"train": "train-{00,00}.tar"}), "train")
    with pytest.raises(ConfigError, match="cannot be opened"):
        check_split(config(splits={"train": "nonsense://bucket/a.tar"}), "train")


@pytest.mark.usefixtures("two_shards")
@pytest.mark.parametrize("kind", ["disk", "ram"])
def test_caches_hold_what_shards_hold(kind: str, config: Callable[..., DataConfig]) -> None:
    data = config(cache=kind)
    pairs = FilePairs(check_split(data, "train").samples, data, split="train")
    cached = with_cache(pairs, data, tell=lambda text: None)
    for index in range(len(pairs)):
        for mine, theirs in zip(cached.read(index), pairs.read(index), strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.usefixtures("two_shards")
def test_split_lists_are_refused(config: Callable[..., DataConfig]) -> None:
    with pytest.raises(ConfigError, match="members of tar files"):
        gather(config(), ["train"])


def test_a_server_is_asked_again(
    config: Callable[..., DataConfig], memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("memory://set/a.tar", tar_bytes(samples_of(range(1))))
    data = config(splits={"train": "memory://set/a.tar"})
    pairs = FilePairs(find_samples(data, "train").samples, data, split="train")
    expected = pairs.read(0)[1]
    real, failures = type(memory).cat_file, [OSError("reset"), OSError("reset")]

    def cat_file(files: Any, *args: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(files, *args, **options)

    monkeypatch.setattr(type(memory), "cat_file", cat_file)
    monkeypatch.setattr("segtrain.data.shards.FIRST_PAUSE_SECONDS", 0.0)
    np.testing.assert_array_equal(pairs.read_target(0), expected)
    failures.extend([OSError("reset")] * 3)
    with pytest.raises(DataError, match=r"memory://set/a\.tar/0000\.png.*reset"):
        pairs.read_target(0)


def test_a_worker_keeps_the_file_systems_of_the_process_it_was_forked_from() -> None:
    """fsspec forgets them there; with http they would end the loop of that process as they close."""
    seen = weakref.ref(remote("memory://set/a.tar")[0])
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads and fork
        worker = context.Process(
            target=lambda: sender.send((remote("memory://set/a.tar")[0] is seen(), seen() is None))
        )
        worker.start()
    assert receiver.poll(60)
    assert receiver.recv() == (False, False)
    worker.join()
