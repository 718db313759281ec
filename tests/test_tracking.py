"""TensorBoard events and metrics.jsonl: complete, valid, without doubles, clear when they cannot be written."""

from __future__ import annotations

import errno
import json
import math
import resource
import signal
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segtrain.errors import SegtrainError
from segtrain.tracking import LogError, Tracker


def lines(folder: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return accumulator


def test_scalars_reach_both_files(tmp_path: Path) -> None:
    with Tracker(tmp_path / "run") as tracker:
        tracker.scalars(10, {"loss/total": 0.5, "lr": 1e-3}, kind="train", epoch=0.5)
        tracker.scalars(20, {"iou/vélo": 0.25}, kind="val", epoch=1)
    assert lines(tmp_path / "run") == [
        {"step": 10, "epoch": 0.5, "kind": "train", "loss/total": 0.5, "lr": 1e-3},
        {"step": 20, "epoch": 1, "kind": "val", "iou/vélo": 0.25},
    ]
    board = events(tmp_path / "run")
    assert set(board.Tags()["scalars"]) == {"train/loss/total", "train/lr", "val/iou/vélo"}
    assert [(event.step, event.value) for event in board.Scalars("train/loss/total")] == [(10, 0.5)]


def test_a_line_is_on_disk_at_once(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        tracker.scalars(1, {"loss": 2.0}, kind="train")
        assert lines(tmp_path) == [{"step": 1, "epoch": None, "kind": "train", "loss": 2.0}]


def test_numbers_that_are_not_finite_are_null_and_stay_valid_json(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        tracker.scalars(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0}, kind="val")
    assert lines(tmp_path)[0] == {"step": 1, "epoch": None, "kind": "val", "a": None, "b": None, "c": None, "d": 1.0}
    assert events(tmp_path).Tags()["scalars"] == ["val/d"]


def test_names_of_the_line_itself_are_refused(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker, pytest.raises(ValueError, match="step"):
        tracker.scalars(1, {"step": 1.0}, kind="train")


def test_going_on_drops_later_reports_and_repeats_none(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        for step in (5, 10, 15):
            tracker.scalars(step, {"loss": float(step)}, kind="train")
        tracker.scalars(10, {"miou": 0.1}, kind="val")
    with Tracker(tmp_path, start_step=10) as tracker:
        tracker.scalars(10, {"miou": 0.1}, kind="val")
        for step in (15, 20):
            tracker.scalars(step, {"loss": step + 0.5}, kind="train")
    assert [(line["step"], line["kind"], line.get("loss")) for line in lines(tmp_path)] == [
        (5, "train", 5.0),
        (10, "train", 10.0),
        (10, "val", None),
        (15, "train", 15.5),
        (20, "train", 20.5),
    ]
    board = events(tmp_path)
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [
        (5, 5.0),
        (10, 10.0),
        (15, 15.5),
        (20, 20.5),
    ]
    assert len(board.Scalars("val/miou")) == 1


def test_starting_anew_in_a_used_folder_drops_everything(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with Tracker(tmp_path) as tracker:
            tracker.scalars(5, {"loss": value}, kind="train")
    assert [line["loss"] for line in lines(tmp_path)] == [2.0]
    assert [event.value for event in events(tmp_path).Scalars("train/loss")] == [2.0]


def test_a_line_cut_by_a_crash_is_dropped(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        tracker.scalars(5, {"loss": 1.0}, kind="train")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "ki')
    with Tracker(tmp_path, start_step=8) as tracker:
        tracker.scalars(9, {"loss": 2.0}, kind="train")
    assert [line["step"] for line in lines(tmp_path)] == [5, 9]


def test_images_are_shown_as_they_are(tmp_path: Path) -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[1, 2] = (255, 0, 0)
    with Tracker(tmp_path) as tracker:
        tracker.image(3, "samples/0", image)
    (shown,) = events(tmp_path).Images("samples/0")
    assert (shown.step, shown.width, shown.height) == (3, 6, 4)


def test_hparams_stay_in_the_run(tmp_path: Path) -> None:
    settings = {"optimizer.lr": 1e-3, "train.compile": False, "data.size": (4, 5), "train.ema": None, "name": "x"}
    with Tracker(tmp_path) as tracker:
        tracker.hparams(3, settings, {"val/miou": 0.5, "val/iou/car": math.nan})
    assert not [path for path in (tmp_path / "tensorboard").iterdir() if path.is_dir()]
    board = events(tmp_path)
    assert [event.value for event in board.Scalars("hparam/val/miou")] == [0.5]
    assert "_hparams_/session_start_info" in board.summary_metadata
    content = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    for text in (b"optimizer.lr", b"false", b"(4, 5)"):
        assert text in content
    assert b"train.ema" not in content


def test_closing_twice_does_no_harm(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    tracker.close()
    tracker.close()


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDisk:
        def write(self, text: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            pass

    with Tracker(tmp_path) as tracker:
        tracker._file.close()
        monkeypatch.setattr(tracker, "_file", FullDisk())
        with pytest.raises(SegtrainError, match=r"No space left on device.*train\.resume=auto") as caught:
            tracker.scalars(1, {"loss": 1.0}, kind="train")
    assert str(tmp_path) in str(caught.value)


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(SegtrainError, match="cannot be written"):
        Tracker(tmp_path / "run")


def test_what_is_reported_is_in_tensorboards_file_before_a_checkpoint_is_written(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    for step in range(1, 8):
        tracker.scalars(step, {"loss": float(step)}, kind="train")
    tracker.flush()  # and then a SIGKILL: nothing is closed
    assert [event.step for event in events(tmp_path).Scalars("train/loss")] == list(range(1, 8))
    tracker.close()


def test_an_evaluation_that_was_reported_and_not_saved_is_reported_again_and_shown_once(tmp_path: Path) -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    with Tracker(tmp_path) as tracker:
        tracker.scalars(10, {"loss": 0.5}, kind="train")
        tracker.scalars(10, {"miou": 0.1}, kind="val")
        tracker.image(10, "samples/0", image)
    with Tracker(tmp_path, start_step=10, again=("val",)) as tracker:
        tracker.scalars(10, {"miou": 0.1}, kind="val")
        tracker.image(10, "samples/0", image)
        tracker.scalars(15, {"loss": 0.25}, kind="train")
    assert [(line["step"], line["kind"]) for line in lines(tmp_path)] == [(10, "train"), (10, "val"), (15, "train")]
    board = events(tmp_path)
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(10, 0.5), (15, 0.25)]
    assert len(board.Scalars("val/miou")) == 1
    assert len(board.Images("samples/0")) == 1


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("size", [400, 2000])
def test_files_that_cannot_grow_are_one_clear_error(tmp_path: Path, size: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    values = {f"iou/class_{number}": 0.5 for number in range(20)}
    tracker = Tracker(tmp_path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        with pytest.raises(LogError, match=r"logs of the run cannot be written under .*train\.resume=auto"):
            deque((tracker.scalars(step, values, kind="val") for step in range(20)), maxlen=0)
        with pytest.raises(ZeroDivisionError), tracker:  # what was the matter first is what is told
            _ = 1 / 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_tensorboards_file_alone_tells_of_a_full_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(record: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    tracker = Tracker(tmp_path)
    monkeypatch.setattr(tracker._events, "_write", refuse)
    tracker.scalars(1, {"loss": 1.0}, kind="train")
    with pytest.raises(LogError, match="No space left on device"):
        tracker.flush()
    tracker.close()
