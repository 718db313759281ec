"""Reads the evaluations of several runs, and says what besides the loss differs between them."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segtrain.config.nearby import near_runs
from segtrain.config.source import Problem, read_yaml
from segtrain.errors import ConfigError, DataError, SegtrainError, listing, some

MEANS = ("miou", "miou_tail")
# Two runs that differ in these alone are the same experiment; seeds are told by themselves.
NO_DIFFERENCE = (
    "name",
    "output",
    "device",
    "seed",
    "loss",
    "data.workers",
    "evaluate.batch_size",
    "train.resume",
    "train.overwrite",
    "train.save_every_seconds",
    "train.log_every",
    "train.validation_samples",
)
NAMED_RUNS = 4


@dataclass(frozen=True)
class EvaluatedRun:
    """What one run reached on one split.

    ratio: what `values` are: iou, dice, precision or recall. values, pixels (of the evaluated masks), train_pixels
    (None where not known): by class, in the order of the classes. means: miou and miou_tail, for iou alone. All ratios
    are fractions, NaN where undefined. settings: the run's configuration, flat. steps: the last one it logged, None
    where it keeps no log. checkpoint: best or last. prior_tau: of the logit adjustment after training that the
    predictions were made with, None without.
    """

    name: str
    split: str
    num_images: int
    ratio: str
    means: Mapping[str, float]
    values: Mapping[str, float]
    pixels: Mapping[str, int]
    train_pixels: Mapping[str, int | None]
    tail: tuple[str, ...]
    checkpoint: str
    settings: Mapping[str, Any]
    steps: int | None
    prior_tau: float | None


def read_runs(folders: Sequence[Path], *, split: str, ratio: str = "iou") -> list[EvaluatedRun]:
    """Read what `evaluate` wrote into the folders of runs, in their order; all problems are told at once.

    A folder is a run's, or one that `evaluate --out` wrote; its name becomes that of the run.

    Raises:
        ConfigError: a folder that is no run or stands there twice, a run that was not evaluated on the split, or runs
            of different classes.
        DataError: a file of an evaluation that cannot be read.
    """
    problems = [problem for folder in folders if (problem := _problem(folder, split=split))]
    twice = {folder.resolve() for folder in folders if sum(f.resolve() == folder.resolve() for f in folders) > 1}
    problems += [f"{folder}: named twice" for folder in sorted(twice)]
    if problems:
        raise ConfigError(listing("these runs cannot be compared:", problems))
    runs = [
        _read(folder, split=split, ratio=ratio, name=name)
        for folder, name in zip(folders, _names(folders), strict=True)
    ]
    _check_same_classes(runs)
    return runs


def unequal(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Return a line for each thing besides loss and seed in which the runs differ: what may explain the table as well.

    Settings that one of the runs does not know (it is older) are not compared.
    """
    lines = [
        *_differing("steps trained", runs, [run.steps for run in runs]),
        *_differing("checkpoint", runs, [run.checkpoint for run in runs]),
        *_differing("evaluate.prior_tau", runs, [run.prior_tau for run in runs]),
    ]
    if len({tuple(run.pixels.values()) for run in runs}) > 1:
        lines.append("evaluated masks: the pixels of the classes differ, so other images or other sizes were measured")
    if len({tuple(run.train_pixels.values()) for run in runs}) > 1:
        lines.append("training masks: the pixels of the classes differ")
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        if not any(f"{key}.".startswith(f"{known}.") for known in (*NO_DIFFERENCE, "evaluate.prior_tau")):
            lines += _differing(key, runs, [run.settings.get(key, ...) for run in runs])
    return lines


def seeds(runs: Sequence[EvaluatedRun]) -> list[int]:
    """Return the distinct seeds that the runs were trained with."""
    return sorted({run.settings["seed"] for run in runs if isinstance(run.settings.get("seed"), int)})


def _differing(what: str, runs: Sequence[EvaluatedRun], values: Sequence[Any]) -> list[str]:
    holders: dict[Hashable, tuple[Any, list[str]]] = {}
    for run, value in zip(runs, values, strict=True):
        if value is not ... and not (what == "steps trained" and value is None):
            holders.setdefault(json.dumps(value, sort_keys=True), (value, []))[1].append(run.name)
    if len(holders) < 2:
        return []
    parts = [f"{_short(value)} ({some(names, limit=NAMED_RUNS)})" for value, names in holders.values()]
    return [f"{what}: {', '.join(parts)}"]


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _metrics_file(folder: Path, *, split: str) -> Path:
    written = folder / "metrics.json"  # by evaluate --out; a run has none there
    return written if written.is_file() else folder / "evaluation" / split / "metrics.json"


def _problem(folder: Path, *, split: str) -> str | None:
    if _metrics_file(folder, split=split).is_file():
        return None
    if (folder / "config.yaml").is_file():
        others = sorted(path.parent.name for path in (folder / "evaluation").glob("*/metrics.json"))
        found = f" (only on {', '.join(others)})" if others else ""
        return f"{folder}: not evaluated on {split}{found}; run: python tools/evaluate.py {folder} --split {split}"
    if folder.exists():
        return f"{folder}: no run, as there is no config.yaml in it; expected a folder such as runs/quickstart"
    return f"{folder}: no such folder{near_runs(folder)}"


def _names(folders: Sequence[Path]) -> list[str]:
    """The names of the folders, or the whole paths where two names are equal."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _read(folder: Path, *, split: str, ratio: str, name: str) -> EvaluatedRun:
    path = _metrics_file(folder, split=split)
    again = f"python tools/evaluate.py {folder} --split {split}"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        classes = found["classes"]
        checkpoint = Path(found["checkpoint"])
        run_folder = folder if (folder / "config.yaml").is_file() else checkpoint.parent.parent
        run = EvaluatedRun(
            name=name,
            split=found["split"],
            num_images=found["num_images"],
            ratio=ratio,
            means={mean: _number(found["means"][mean]["value"]) for mean in MEANS if ratio == "iou"},
            values={row["class"]: _number(row[ratio]) for row in classes},
            pixels={row["class"]: row["pixels"] for row in classes},
            train_pixels={row["class"]: row["train_pixels"] for row in classes},
            tail=tuple(found["means"]["miou_tail"]["classes"]),
            checkpoint=checkpoint.stem,
            settings=_settings(run_folder / "config.yaml"),
            steps=_last_step(run_folder / "metrics.jsonl"),
            prior_tau=found.get("prior_tau"),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not what evaluate writes ({type(error).__name__}: {error}); run again: {again}"
        ) from error
    if run.split != split:
        raise ConfigError(f"{path}: of split {run.split!r}, not {split!r}; choose it by --split {run.split}")
    return run


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _settings(path: Path) -> dict[str, Any]:
    """The saved configuration as flat pairs; not checked, so that runs of older versions can be compared."""
    problems: list[Problem] = []
    try:
        found = read_yaml(path.read_text(encoding="utf-8"), str(path), problems=problems).plain()
    except (OSError, SegtrainError):
        return {}
    return _flat(found, "") if isinstance(found, dict) else {}


def _flat(values: Mapping[Any, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _last_step(path: Path) -> int | None:
    if not path.is_file():
        return None
    steps = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            steps.append(int(json.loads(line)["step"]))
        except (ValueError, KeyError, TypeError):  # the half line of a run that was killed
            continue
    return max(steps, default=None)


def _check_same_classes(runs: Sequence[EvaluatedRun]) -> None:
    first = runs[0]
    others = [run for run in runs if list(run.values) != list(first.values)]
    if not others:
        return
    lines = [f"{run.name}: {some(list(run.values), limit=12)}" for run in (first, *others)]
    raise ConfigError(listing("the runs have different classes, which cannot be compared:", lines))
