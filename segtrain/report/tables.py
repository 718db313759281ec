"""The per-class table of an evaluation: for the terminal at 80 columns, as CSV rows and as JSON."""

from __future__ import annotations

import math
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from segtrain.drawing import shorten
from segtrain.engine.evaluate import Evaluation
from segtrain.engine.nan_outputs import nan_warning
from segtrain.errors import some
from segtrain.metrics import OVERALL, RATIOS
from segtrain.report.numbers import RATIO_NAMES, UNDEFINED

TAIL_MARK = "*"
CSV_HEADER = ("class", *RATIOS, "pixels", "images", "tail", "train_pixels")
MEAN_NAMES = {
    "miou": "mean IoU",
    "miou_tail": "mean IoU, tail",
    "miou_selected": "mean IoU, selected",
    "fwiou": "IoU weighted by pixels",
    "pixel_accuracy": "pixel accuracy",
}


def class_table(evaluation: Evaluation) -> Group:
    """Return the table of all classes and the means under it, to be printed on a rich console."""
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), title=escape(_title(evaluation))
    )
    table.title_style = ""
    table.title_justify = "left"
    table.add_column("class", max_width=24, overflow="fold")
    for heading in (*(RATIO_NAMES.get(ratio, ratio) for ratio in RATIOS), "pixels", "images"):
        table.add_column(heading, justify="right", no_wrap=True)
    tail = set(evaluation.groups["miou_tail"])
    for index, row in enumerate(class_rows(evaluation)):
        name = Text(shorten(row["class"], 22) + (f" {TAIL_MARK}" if index in tail else ""))
        ratios = [_ratio(row[key]) for key in RATIOS]
        table.add_row(name, *ratios, _count(row["pixels"]), _count(row["images"]))
    return Group(table, Text(), means_table(evaluation), Text(), Text(_notes(evaluation)))


def means_table(evaluation: Evaluation) -> Table:
    """Return the means, each with the number of classes that it is over."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify)
    for key, name in MEAN_NAMES.items():
        if key not in evaluation.scores:
            continue
        table.add_row(name, _ratio(evaluation.scores[key]), Text(_over(evaluation, key)))
    if evaluation.loss is not None:
        table.add_row("loss", _ratio(evaluation.loss), Text(""))
    return table


def class_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return one record for each class with the keys of CSV_HEADER; undefined ratios are NaN."""
    tail = set(evaluation.groups["miou_tail"])
    support = evaluation.confusion.support.tolist()
    train = None if evaluation.frequencies is None else evaluation.frequencies.pixels
    rows = []
    for index, name in enumerate(evaluation.class_names):
        ratios = {key: evaluation.scores[f"{key}/{name}"] for key in RATIOS}
        counts = {"pixels": support[index], "images": int(evaluation.confusion.images[index])}
        trained = {"tail": index in tail, "train_pixels": None if train is None else int(train[index])}
        rows.append({"class": name, **ratios, **counts, **trained})
    return rows


def csv_rows(evaluation: Evaluation) -> list[list[Any]]:
    """Return the header and one row for each class; undefined values are empty."""
    rows = [[_blank(row[key]) for key in CSV_HEADER] for row in class_rows(evaluation)]
    return [list(CSV_HEADER), *rows]


def metrics_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the whole evaluation in JSON types; undefined values are null."""
    names = evaluation.class_names
    means = {
        key: {
            "value": _null(evaluation.scores[key]),
            "classes": [names[index] for index in group],
            "counted": evaluation.counted[key],
        }
        for key, group in evaluation.groups.items()
    }
    others = {key: _null(evaluation.scores[key]) for key in OVERALL}
    axes = {"rows": "target", "columns": "prediction"}
    if evaluation.thresholds is not None:
        axes = {"of_each_class": "[[absent, invented], [missed, hit]]", **axes}
    classes = [{key: _null(value) for key, value in row.items()} for row in class_rows(evaluation)]
    return {
        "split": evaluation.split,
        "num_images": evaluation.num_images,
        "loss": _null(evaluation.loss),
        "nan_outputs": evaluation.nan_outputs,
        "prior_tau": evaluation.prior_tau,
        "thresholds": evaluation.thresholds,
        "means": means,
        **others,
        "classes": classes,
        "confusion": {**axes, **evaluation.confusion.state()},
    }


def _title(evaluation: Evaluation) -> str:
    images = f"{evaluation.num_images} image{'s' if evaluation.num_images != 1 else ''}"
    counted, num_classes = evaluation.counted["miou"], len(evaluation.class_names)
    return f"{evaluation.split}: {images}, means over {counted} of {num_classes} classes"


def _over(evaluation: Evaluation, key: str) -> str:
    if key not in evaluation.groups:
        return ""
    group = evaluation.groups[key]
    counted = evaluation.counted[key]
    of = "" if counted == len(group) else f" of {len(group)}"
    return f"over {counted}{of} class{'es' if len(group) != 1 or counted != 1 else ''}"


def _notes(evaluation: Evaluation) -> str:
    by = "training pixels" if evaluation.frequencies is not None else "pixels of this split (training pixels unknown)"
    notes = [f"{TAIL_MARK} tail: the rarest by {by}"]
    if evaluation.nan_outputs:
        notes.append(f"warning: {nan_warning(evaluation.nan_outputs, evaluation.split)}")
    if evaluation.prior_tau is not None:
        notes.append(f"predicted with evaluate.prior_tau = {evaluation.prior_tau:g}")
    if evaluation.thresholds is not None:
        notes.append(
            f"each class is a yes or no of its own, present from this probability on: {_thresholds(evaluation)}"
        )
        notes.append("pixel accuracy: share of the right answers over all pixels and classes")
    if any(math.isnan(row["iou"]) for row in class_rows(evaluation)):
        notes.append(f"{UNDEFINED} undefined: neither in the masks nor predicted; left out of the means")
    return "\n".join(notes)


def _thresholds(evaluation: Evaluation) -> str:
    """Return the threshold of all classes, or that of each where they differ."""
    each = evaluation.thresholds or {}
    if len(set(each.values())) == 1:
        return f"{next(iter(each.values())):g}"
    return some([f"{shorten(name)} {value:g}" for name, value in each.items()], limit=20)


def _ratio(value: float) -> str:
    return UNDEFINED if math.isnan(value) else f"{value:.4f}"


def _count(value: int) -> str:
    """Up to ten digits in full, which the table has room for; above, in billions."""
    return f"{value}" if value < 10**10 else f"{value / 10**9:.1f}G"


def _null(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _blank(value: Any) -> Any:
    return "" if _null(value) is None else value
