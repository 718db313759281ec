"""What a run reports while it runs: TensorBoard events and one line of metrics.jsonl for each report."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]
from torch.utils.tensorboard.summary import hparams as hparams_summary
from torch.utils.tensorboard.summary import image as image_summary

from segtrain.errors import SegtrainError

METRICS_FILE = "metrics.jsonl"
EVENTS_FOLDER = "tensorboard"
Kind = Literal["train", "val", "exposure"]
RESERVED_KEYS = frozenset({"step", "epoch", "kind"})


class LogError(SegtrainError):
    """The logs of a run cannot be written."""


class Tracker:
    """Writes the numbers of a run to `<folder>/metrics.jsonl` and `<folder>/tensorboard`.

    A run that goes on from a checkpoint gives the checkpoint's step as `start_step`: what an earlier process
    reported after that step is dropped, and reports of that very step which are already there are not repeated.
    With `start_step` 0 the reports start anew.

    TensorBoard has lost nothing that stands in metrics.jsonl where `flush` came before the checkpoint was written.

    Args:
        folder: folder of the run; made if missing.
        start_step: number of optimizer steps that are already done.
        again: what will be reported again about `start_step`, as the evaluation there was not finished: of that step
            all else stays, numbers only, and TensorBoard's images are dropped as they come with the evaluation.

    Raises:
        LogError: the folder cannot be written, here and in every method; of TensorBoard's file some reports later.
    """

    def __init__(self, folder: Path, *, start_step: int = 0, again: Collection[str] = ()) -> None:
        self._path = folder / METRICS_FILE
        self._start_step = start_step
        with self._failures_explained():
            folder.mkdir(parents=True, exist_ok=True)
            at_start = self._drop_lines_past_start(again)
            self._kinds_at_start = {str(line.get("kind")) for line in at_start}
            self._file = self._path.open("a", encoding="utf-8", newline="\n")
            # TensorBoard forgets the events of an earlier process from this step on.
            purge_step = start_step + (0 if again else 1) if start_step else 0
            self._events = _EventFile(folder / EVENTS_FOLDER, purge_step=purge_step)
            for line in at_start if again else ():
                self._tell_tensorboard(start_step, line, kind=line["kind"])

    def scalars(
        self,
        step: int,
        values: Mapping[str, float],
        *,
        kind: Kind,
        epoch: float | None = None,
    ) -> None:
        """Report numbers, in TensorBoard as `<kind>/<key>`.

        In metrics.jsonl a number that is not finite is null; TensorBoard leaves it out.

        Args:
            step: number of optimizer steps done.
            values: name to number; the names `step`, `epoch` and `kind` are taken.
            kind: what the numbers are about.
            epoch: number of epochs done, for metrics.jsonl.
        """
        taken = RESERVED_KEYS & set(values)
        if taken:
            raise ValueError(f"the names {', '.join(sorted(taken))} are taken: call these values something else")
        if step == self._start_step and kind in self._kinds_at_start:
            return
        numbers = {key: float(value) for key, value in values.items()}
        finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        line = json.dumps({"step": step, "epoch": epoch, "kind": kind, **finite}, allow_nan=False, ensure_ascii=False)
        with self._failures_explained():
            self._file.write(line + "\n")
            self._file.flush()
            self._tell_tensorboard(step, finite, kind=kind)

    def _tell_tensorboard(self, step: int, values: Mapping[str, Any], *, kind: str) -> None:
        told = {key: value for key, value in values.items() if value is not None and key not in RESERVED_KEYS}
        # one event of all: an event for each number of each class would cost more than counting them
        summary = Summary(value=[Summary.Value(tag=f"{kind}/{key}", simple_value=value) for key, value in told.items()])
        self._events.add(summary, step)

    def flush(self) -> None:
        """Wait until TensorBoard's file has all that was reported; lines of metrics.jsonl are written at once."""
        with self._failures_explained():
            self._events.flush()

    def image(self, step: int, tag: str, image: NDArray[np.uint8]) -> None:
        """Show an image (uint8 [H, W, 3]) in TensorBoard under `tag`."""
        with self._failures_explained():
            self._events.add(image_summary(tag, image, dataformats="HWC"), step)  # type: ignore[no-untyped-call]

    def hparams(self, step: int, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Show settings and final numbers in TensorBoard's table of runs.

        Args:
            step: optimizer step to which the metrics belong.
            config: flat name (`optimizer.lr`) to value; what is no number or text is written as text, None is left out.
            metrics: name to number, written as `hparam/<name>`; numbers that are not finite are left out.
        """
        settings = {key: _setting(value) for key, value in config.items() if value is not None}
        results = {f"hparam/{key}": float(value) for key, value in metrics.items() if math.isfinite(value)}
        with self._failures_explained():
            # SummaryWriter.add_hparams would make a run of its own inside this one.
            for summary in hparams_summary(settings, results):  # type: ignore[no-untyped-call]
                self._events.add(summary, None)
            values = [Summary.Value(tag=key, simple_value=value) for key, value in results.items()]
            self._events.add(Summary(value=values), step)
            self._events.flush()

    def close(self) -> None:
        """Write what is buffered and close the files; closing twice does no harm."""
        with self._failures_explained():
            try:
                self._file.close()
            finally:
                self._events.close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except LogError:
            if error is None:  # else it is what the user must know
                raise

    def _drop_lines_past_start(self, again: Collection[str]) -> list[dict[str, Any]]:
        """Rewrite metrics.jsonl without lines past the start, without what comes again, and without damaged ones.

        Returns:
            The lines that are left of the very start step.
        """
        if not self._path.exists():
            return []
        kept, at_start = [], []
        if self._start_step:
            for text in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
                line = _parse(text)
                if line is None or line["step"] > self._start_step:
                    continue
                if line["step"] == self._start_step and line.get("kind") in again:
                    continue
                kept.append(text)
                if line["step"] == self._start_step:
                    at_start.append(line)
        # A rename, so that a crash here loses no line that was to stay.
        partial = self._path.with_suffix(".jsonl.partial")
        partial.write_text("".join(f"{text}\n" for text in kept), encoding="utf-8", newline="\n")
        partial.replace(self._path)
        return at_start

    @contextmanager
    def _failures_explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LogError(
                f"the logs of the run cannot be written under {self._path.parent}: {error.strerror or error}; "
                "free space or permissions there, then go on with train.resume=auto"
            ) from error


class _EventFile:
    """A file of TensorBoard's own format, written in a thread: its checksums are slow in Python, and GPUs would wait.

    Unlike TensorBoard's writer it hands on what it is given at once, keeps nothing back in a buffer, and tells of a
    full disk by an error alone, without a traceback from its thread.
    """

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        seconds, rest = divmod(time.time_ns(), 10**9)  # TensorBoard reads files in the order of their names
        path = folder / f"events.out.tfevents.{seconds:010}.{rest:09}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(path.open("wb"))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tensorboard")
        self._pending: deque[Future[None]] = deque()
        self._put(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._put(Event(wall_time=time.time(), step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, summary: Any, step: int | None) -> None:
        """Write a summary; raises OSError where an earlier one could not be written."""
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()
        self._put(Event(wall_time=time.time(), step=step, summary=summary))

    def _put(self, event: Any) -> None:
        self._pending.append(self._pool.submit(self._write, event.SerializeToString()))

    def _write(self, record: bytes) -> None:
        self._records.write(record)
        self._records.flush()

    def flush(self) -> None:
        """Wait until all is written; raises OSError where something could not be."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """Write all and close the file."""
        try:
            self.flush()
        finally:
            self._pool.shutdown()
            self._records.close()


class SilentTracker(Tracker):
    """Reports nothing, and writes nothing: what all ranks but the first have."""

    def __init__(self) -> None:
        """Open no file."""

    def scalars(self, step: int, values: Mapping[str, float], *, kind: Kind, epoch: float | None = None) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def image(self, step: int, tag: str, image: NDArray[np.uint8]) -> None:
        """Do nothing."""

    def hparams(self, step: int, config: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _setting(value: Any) -> str | int | float:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | str):
        return value
    return str(value)


def _parse(text: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl, or None for what a crash left of one."""
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None
