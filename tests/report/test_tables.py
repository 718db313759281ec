"""The table says what is undefined, what the means are over, and fits into 80 columns."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from rich.console import Console

from segtrain.engine.evaluate import Evaluation
from segtrain.metrics import ConfusionMatrix, compute_scores
from segtrain.report.confusion_plot import row_shares, save_confusion_plot
from segtrain.report.tables import class_table, csv_rows, metrics_json

NAMES = ("road", "pole", "[bold]a very long class name, with markup[/bold]", "sky")


def evaluation_of(matrix: list[list[int]], names: tuple[str, ...] = NAMES, *, trained: bool = True) -> Evaluation:
    images = [9 * any(row) for row in matrix]
    state = {"ignore_index": 255, "matrix": matrix, "images": images, "num_images": 9}
    confusion = ConfusionMatrix.from_state(state)
    frequencies = SimpleNamespace(pixels=[50, 2, 9, 1][: len(names)]) if trained else None
    result = compute_scores(confusion, names, frequencies=frequencies, exclude=names[:1])
    return Evaluation(
        confusion=confusion,
        scores=result.values,
        groups=result.groups,
        counted=result.counted,
        class_names=names,
        num_images=9,
        split="test",
        loss=None,
        frequencies=frequencies,  # type: ignore[arg-type]
    )


@pytest.fixture
def evaluation() -> Evaluation:
    return evaluation_of([[80_000_000_000, 15, 0, 0], [0, 5, 0, 0], [5, 0, 0, 0], [0, 0, 0, 0]])


def text_of(evaluation: Evaluation, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(class_table(evaluation))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_rows_stay_on_one_line_of_80_columns(evaluation: Evaluation) -> None:
    lines = text_of(evaluation).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    (pole,) = (line for line in lines if line.startswith("pole"))
    assert pole.split() == ["pole", "*", "0.2500", "0.4000", "0.2500", "1.0000", "5", "9"]
    (long,) = (line for line in lines if line.startswith("[bold]"))
    assert "…" in long
    assert len(long.split()) >= 7


def test_undefined_values_are_dashes_and_the_header_counts_the_classes(evaluation: Evaluation) -> None:
    text = text_of(evaluation)
    (sky,) = (line for line in text.splitlines() if line.startswith("sky"))
    assert sky.split()[2:6] == ["–"] * 4
    assert "means over 3 of 4 classes" in text
    assert "over 2 of 3 classes" in text
    assert "left out of the means" in text
    assert "nan" not in text


def test_the_tail_is_marked_and_its_source_is_told(evaluation: Evaluation) -> None:
    assert "sky *" in text_of(evaluation)
    assert "rarest by training pixels" in text_of(evaluation)
    unknown = evaluation_of([[5, 0], [0, 1]], ("road", "pole"), trained=False)
    assert "training pixels unknown" in text_of(unknown)


def test_json_is_valid_and_undefined_is_null(evaluation: Evaluation) -> None:
    content = json.loads(json.dumps(metrics_json(evaluation), allow_nan=False))
    assert content["classes"][3]["iou"] is None
    assert content["classes"][1]["iou"] == 0.25
    assert content["means"]["miou"]["counted"] == 3
    assert content["means"]["miou_tail"]["classes"] == ["sky", "pole"]
    assert content["confusion"]["matrix"][0][0] == 80_000_000_000


def test_csv_holds_full_numbers_and_blanks(evaluation: Evaluation) -> None:
    stream = io.StringIO()
    csv.writer(stream).writerows(csv_rows(evaluation))
    rows = list(csv.DictReader(io.StringIO(stream.getvalue())))
    assert [row["class"] for row in rows] == list(NAMES)
    assert rows[0]["pixels"] == "80000000015"
    assert rows[3]["iou"] == ""
    assert rows[1]["train_pixels"] == "2"


def test_rows_of_the_plot_are_shares_of_the_target(evaluation: Evaluation) -> None:
    shares = row_shares(evaluation.confusion)
    assert shares[2].tolist() == [1, 0, 0, 0]
    assert shares[:3].sum(axis=1) == pytest.approx([1, 1, 1])
    assert all(math.isnan(share) for share in shares[3])


@pytest.mark.parametrize("num_classes", [2, 20, 61])
def test_plot_is_written_for_few_and_many_classes(tmp_path: Path, num_classes: int) -> None:
    names = tuple(f"${index}_{{" for index in range(num_classes))
    confusion = ConfusionMatrix(num_classes)
    confusion.matrix[0, 0] = 3
    save_confusion_plot(tmp_path / "confusion.png", confusion, class_names=names, title="a $run, step 1")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.size[0] > 300
