"""Shards behind a web server hold what shards on disk hold, in workers and after them; other servers say what lacks."""

from __future__ import annotations

import io
import re
import signal
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from segtrain.config.data import DataConfig
from segtrain.data import check_split
from segtrain.data.dataset import TrainDataset
from segtrain.data.formats import find_samples
from segtrain.data.loader import build_train_loader
from segtrain.data.sampling import TrainBatchSampler
from segtrain.data.sources import FilePairs
from segtrain.errors import ConfigError, DataError

pytest.importorskip("aiohttp")

NUM_SAMPLES = 60  # more than fsspec reads at once


class Plain(SimpleHTTPRequestHandler):
    """Python's own, which knows no ranges."""

    def log_message(self, *args: Any) -> None:
        pass

    def copyfile(self, source: Any, outputfile: Any) -> None:
        try:
            super().copyfile(source, outputfile)
        except ConnectionError:  # who asked has seen enough
            self.close_connection = True


class Ranged(Plain):
    """One that answers requests for parts of a file, and keeps connections."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if found is None:
            super().do_GET()
            return
        content = Path(self.translate_path(self.path)).read_bytes()
        first, last = int(found[1]), min(int(found[2]), len(content) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(content[first : last + 1])


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., DataConfig]]:
    """A data section whose shards, which lie in the folder `served`, a server of this kind offers."""
    _write_shards(tmp_path / "served")
    running: list[ThreadingHTTPServer] = []

    def make(kind: type[SimpleHTTPRequestHandler], pattern: str) -> DataConfig:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(kind, directory=str(tmp_path / "served")))
        running.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return section(tmp_path / f"cache-{len(running)}", f"http://127.0.0.1:{server.server_port}/{pattern}")

    yield make
    for server in running:
        server.shutdown()
        server.server_close()


def section(root: Path, pattern: str) -> DataConfig:
    root.mkdir(exist_ok=True)
    plain = {"root": str(root), "layout": "shards", "classes": ["background", "block"], "splits": {"train": pattern}}
    return DataConfig.model_validate(plain)


def _write_shards(folder: Path) -> None:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(2):
        with tarfile.open(folder / f"a-{number}.tar", "w") as tar:
            for sample in range(NUM_SAMPLES // 2):
                image = generator.integers(0, 256, (16, 24, 3), dtype=np.uint8)
                for extension, pixels in (("image.png", image), ("mask.png", image[:, :, 0] // 128)):
                    content = io.BytesIO()
                    Image.fromarray(pixels).save(content, "PNG")
                    info = tarfile.TarInfo(f"{number}-{sample:02}.{extension}")
                    info.size = content.tell()
                    tar.addfile(info, io.BytesIO(content.getvalue()))


@contextmanager
def in_time() -> Iterator[None]:
    """End what would wait for ever if it fails: here, as fsspec keeps its connections by thread."""

    def stop(*frame: Any) -> None:
        raise AssertionError("the server's answer was not noticed")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_server_gives_the_samples_of_the_disk_in_workers_and_after_them(
    served: Callable[..., DataConfig], tmp_path: Path
) -> None:
    data = served(Ranged, "a-{0..1}.tar")
    local = section(tmp_path / "served", "a-{0..1}.tar")
    remote_scan, scan = (check_split(each, "train", show_progress=False) for each in (data, local))
    np.testing.assert_array_equal(remote_scan.counts, scan.counts)
    assert len(scan.samples) == NUM_SAMPLES
    pairs = FilePairs(scan.samples, local, split="train")
    dataset = TrainDataset(FilePairs(remote_scan.samples[:8], data, split="train"), data)
    first = dataset[0, 0]["image"]  # opens a connection that this process keeps
    loader = build_train_loader(dataset, TrainBatchSampler(8, 4, seed=0), workers=2)
    try:
        for batch in loader:
            for image, index in zip(batch["image"], batch["index"].tolist(), strict=True):
                np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pairs.read(index)[0])
    finally:
        loader.close()
    with in_time():  # workers must leave alone what this process waits for
        np.testing.assert_array_equal(dataset[0, 0]["image"], first)
        wild = data.model_copy(update={"splits": {"train": data.splits["train"].replace("{0..1}", "*")}})
        assert [sample.name for sample in find_samples(wild, "train").samples] == remote_scan.names


def test_a_server_without_ranges_is_told_of(served: Callable[..., DataConfig]) -> None:
    with pytest.raises(DataError, match=r"a-0\.tar.*the server does not answer range requests"):
        check_split(served(Plain, "a-{0..1}.tar"), "train", show_progress=False)


def test_a_shard_that_is_not_there_is_named(served: Callable[..., DataConfig]) -> None:
    with pytest.raises(DataError, match=r"b\.tar: no such shard"):
        check_split(served(Ranged, "b.tar"), "train", show_progress=False)


def test_a_package_that_a_url_takes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(location: str) -> Any:
        raise ImportError("no module named somewhat")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    for protocol, package in (("https", "aiohttp"), ("s3", "s3fs")):
        with pytest.raises(ConfigError, match=f"somewhat.*: pip install {package}"):
            find_samples(section(tmp_path / "cache", f"{protocol}://example.org/a.tar"), "train")
