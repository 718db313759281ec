"""Measures how a list of very many samples opens: time beside plain Python, memory, size when sent."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segtrain.benchmark.environment import describe_environment
from segtrain.benchmark.memory import has_resident_peak, in_child, resident_peak
from segtrain.benchmark.timing import Timing, paired_ratio, time_interleaved
from segtrain.config.data import DataConfig
from segtrain.data.dataset import TrainDataset
from segtrain.data.formats import Sample, find_samples
from segtrain.data.formats.long_lists import UNCHECKED
from segtrain.data.samples import Samples
from segtrain.data.sampling import TrainBatchSampler
from segtrain.errors import ConfigError

PLAIN, OPENED, TABLE, SENT, ORDER, RECORDS = (
    "lines split into texts, in plain Python",
    "list opened",
    "the same as a CSV table, opened",
    "sent to a worker that is not forked",
    "data set and the order of an epoch",
    "10,000 samples made",
)
BATCH = 16
RECORDS_MADE = 10_000
MAX_SECONDS = 600.0
LIST, TABLE_FILE = "train.txt", "train.csv"


def benchmark_index(num_samples: int, *, rounds: int) -> dict[str, Any]:
    """Write a list of so many lines, whose files do not exist, and measure in JSON types what is done with it.

    Raises:
        ConfigError: so few lines that each file would be looked for.
    """
    if num_samples < UNCHECKED:
        raise ConfigError(f"--index measures lists of {UNCHECKED:,} lines and more, whose files are not looked for")
    environment = describe_environment("cpu")
    with tempfile.TemporaryDirectory(prefix="segtrain-benchmark-") as root:
        write_list(Path(root), num_samples)
        samples = _opened(root)
        calls: dict[str, Callable[[], object]] = {
            PLAIN: partial(_split_lines, root),
            OPENED: partial(_opened, root),
            TABLE: partial(_opened_table, root),
            SENT: partial(_sent, samples),
            ORDER: partial(_order, samples, root),
            RECORDS: partial(_records, samples),
        }
        timings = time_interleaved(calls, baseline=PLAIN, rounds=rounds, max_seconds=MAX_SECONDS)
        peaks = [in_child(measure, root) if has_resident_peak() else None for measure in (_peak, _peak_of_table)]
    return {
        "benchmark": "index",
        "environment": environment,
        "settings": {"samples": num_samples, "rounds": rounds},
        "peak_bytes": peaks[0],
        "table_peak_bytes": peaks[1],
        "sent_bytes": len(_sent(samples)),
        "rows": [_row(name, timings) for name in calls],
    }


def write_list(root: Path, num_samples: int) -> None:
    """A list and a table as long as people's: two paths of some 25 characters in each line."""
    lines = (f"images/{i // 1000:04}/{i:07}.jpg\tmasks/{i // 1000:04}/{i:07}.png\n" for i in range(num_samples))
    with (root / LIST).open("w", encoding="ascii") as stream, (root / TABLE_FILE).open("w", encoding="ascii") as table:
        table.write("image,mask\n")
        for line in lines:
            stream.write(line)
            table.write(line.replace("\t", ","))


def _config(root: str) -> DataConfig:
    return DataConfig(root=root, layout="lists", splits={"train": LIST}, classes=["a", "b"])  # type: ignore[arg-type]


def _config_of_table(root: str) -> DataConfig:
    return _config(root).model_copy(update={"layout": "table", "splits": {"train": TABLE_FILE}})


def _split_lines(root: str) -> list[list[str]]:
    return [line.split("\t") for line in Path(root, LIST).read_text(encoding="utf-8").splitlines()]


def _opened(root: str) -> Samples[Sample]:
    return Samples.pack(find_samples(_config(root), "train").samples)


def _opened_table(root: str) -> Samples[Sample]:
    return Samples.pack(find_samples(_config_of_table(root), "train").samples)


def _sent(samples: Samples[Sample]) -> bytes:
    return pickle.dumps(samples, protocol=5)


def _order(samples: Samples[Sample], root: str) -> object:
    dataset = TrainDataset(samples, _config(root))
    return next(iter(TrainBatchSampler(len(dataset), BATCH, seed=0)))


def _records(samples: Samples[Sample]) -> None:
    for index in np.random.default_rng(0).integers(len(samples), size=RECORDS_MADE).tolist():
        samples[index]


def _peak(root: str) -> int:
    return resident_peak(partial(_opened, root))


def _peak_of_table(root: str) -> int:
    return resident_peak(partial(_opened_table, root))


def _row(name: str, timings: dict[str, Timing]) -> dict[str, Any]:
    mine, plain = timings[name], timings[PLAIN]
    ratio = paired_ratio(mine.rounds, mine.cpu_seconds, plain.rounds, plain.cpu_seconds)
    return {
        "name": name,
        "seconds": float(np.median(mine.seconds)),
        "cpu_seconds": float(np.median(mine.cpu_seconds)),
        "least_cpu_seconds": min(mine.cpu_seconds),
        "to_plain_by_cpu_time": None if ratio is None else ratio.median,
    }
