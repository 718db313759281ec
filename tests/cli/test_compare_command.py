"""The command compare: one table of several runs, and a warning where more than the loss differs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segtrain.cli.main import main
from segtrain.report.comparison import read_runs
from segtrain.report.comparison_table import terminal_table

SHARES = {"road": 9000, "sky": 900, "pole": 90, "[b]sign": 10}
MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write the folder of a run as train and evaluate leave it, with the given IoU of the classes."""

    def make(name: str, iou: list[float | None], *, split: str = "test", seed: int = 0, **settings: Any) -> Path:
        folder = tmp_path / "runs" / name
        names = settings.pop("names", list(SHARES))
        counts = settings.pop("pixels", [40, 30, 20, 10])
        classes = [
            {"class": label, "iou": value, "recall": 0.5, "precision": value, "pixels": count, "train_pixels": trained}
            for label, value, count, trained in zip(names, iou, counts, SHARES.values(), strict=True)
        ]
        defined = [value for value in iou if value is not None]
        mean = {"value": sum(defined) / len(defined), "classes": names}
        tail = {"value": iou[3], "classes": names[2:]}
        content = {"checkpoint": f"{folder}/checkpoints/best.pt", "split": split, "num_images": 5}
        content |= {"means": {"miou": mean, "miou_tail": tail}, "classes": classes}
        (folder / "evaluation" / split).mkdir(parents=True)
        (folder / "evaluation" / split / "metrics.json").write_text(json.dumps(content))
        steps = settings.pop("steps", 100)
        epochs, lr, loss = settings.get("epochs", 6), settings.get("lr", "1e-3"), settings.get("loss", "auto")
        (folder / "config.yaml").write_text(
            f"name: {name}\nseed: {seed}\nloss: {loss}\ntrain: {{epochs: {epochs}}}\noptimizer: {{lr: {lr}}}\n"
        )
        (folder / "metrics.jsonl").write_text(f'{{"step": 10}}\n{{"step": {steps}}}\n{{"st')
        return folder

    return make


def answer(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> tuple[str, str]:
    assert main(["compare", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_the_table_orders_classes_from_the_rarest_and_marks_the_best(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = make_run("try_plain", [0.9, 0.8, 0.1, None], loss="plain")
    remedy = make_run("try_remedy", [0.9, 0.7, 0.3, 0.25])
    out, err = answer(capsys, plain, remedy)
    lines = out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.split()[:1] in (["plain"], ["remedy"])}
    assert rows["plain"] == ["60.0*", "–", "–", "10.0", "80.0*", "90.0"]
    assert rows["remedy"] == ["53.8", "25.0", "25.0", "30.0*", "70.0", "90.0"]
    head = " ".join(lines[:2]).split()
    assert [head.index(name) for name in ("[b]sign", "pole", "sky", "road")] == sorted(
        head.index(name) for name in SHARES
    )
    assert "0.90 %" in out
    assert "tail: mean over pole, [b]sign" in out
    assert "without their common beginning try_" in out
    assert "one seed (0)" in out
    assert err == ""


def test_recall_and_precision_can_be_shown_in_place_of_iou(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [make_run("a", [0.9, 0.8, 0.1, None]), make_run("b", [0.8, 0.7, 0.3, 0.25])]
    out, _ = answer(capsys, *folders, "--ratio", "recall", "--markdown")
    assert out.splitlines()[3] == "| a | 50.0 | 50.0 | 50.0 | 50.0 |"
    assert "mIoU" not in out
    out, _ = answer(capsys, *folders, "--ratio", "precision", "--sort", "sky")
    assert "–: undefined, never predicted" in out
    _, err = answer(capsys, *folders, "--ratio", "recall", "--sort", "miou", code=2)
    assert "expected one of name, road" in err


def test_a_column_of_one_value_has_no_best(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [make_run(name, [0.5, 0.5, 0.0, 0.0], seed=seed) for seed, name in enumerate("ab")]
    out, _ = answer(capsys, *folders)
    assert "*" not in out
    assert "one seed" not in out


def test_runs_can_be_sorted_by_a_mean_a_class_or_their_name(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"b": (0.1, 0.9), "c": (0.5, None), "a": (0.3, 0.2)}
    folders = [make_run(name, [first, 0.5, 0.5, last]) for name, (first, last) in values.items()]

    def order(*sort: str) -> str:
        out, _ = answer(capsys, *folders, "--markdown", *sort)
        return "".join(line[2] for line in out.splitlines()[3:6])

    assert order() == "bca"
    assert order("--sort", "name") == "abc"
    assert order("--sort", "road") == "cab"
    assert order("--sort", "miou_tail") == "bac"  # undefined last
    _, err = answer(capsys, *folders, "--sort", "raod", code=2)
    assert "did you mean 'road'?" in err


def test_markdown_is_one_table_with_the_best_in_bold(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [make_run("a_b", [0.9, 0.8, 0.1, None]), make_run("b|_c", [0.9, 0.7, 0.3, 0.25])]
    out, err = answer(capsys, *folders, "--markdown", "--out", tmp_path / "table.md")
    head, _, shares, first, second, *_ = out.splitlines()
    assert head == r"| test IoU, % | mIoU | tail | \[b]sign | pole | sky | road |"
    assert shares.endswith("|  |  | 0.10 | 0.90 | 9.00 | 90.00 |")
    assert first == "| a_b | **60.0** | – | – | 10.0 | **80.0** | 90.0 |"
    assert second.startswith(r"| b\|\_c | 53.8 | 25.0 |")
    assert (tmp_path / "table.md").read_text() == out
    assert f"written: {tmp_path / 'table.md'}" in err


def test_csv_holds_fractions_in_the_order_of_the_classes(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [make_run("a", [0.9, 0.8, 0.1, None], seed=3), make_run("b", [0.9, 0.7, 0.3, 0.25])]
    answer(capsys, *folders, "--out", tmp_path / "table.csv")
    first, second = csv.DictReader((tmp_path / "table.csv").read_text().splitlines())
    assert list(first)[:6] == ["run", "split", "seed", "steps", "miou", "miou_tail"]
    assert list(first)[6:] == [f"iou/{name}" for name in SHARES]
    assert (first["seed"], first["steps"], first["iou/[b]sign"], first["iou/pole"]) == ("3", "100", "", "0.1")
    assert second["iou/[b]sign"] == "0.25"
    _, err = answer(capsys, *folders, "--out", tmp_path / "table.txt", code=2)
    assert ".md or .csv" in err


def test_unequal_budgets_and_data_are_told(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    fair = make_run("fair", [0.9, 0.8, 0.1, 0.0])
    longer = make_run("longer", [0.9, 0.8, 0.1, 0.0], epochs=12, steps=200, lr="5e-4", seed=1)
    other = make_run("other", [0.9, 0.8, 0.1, 0.0], pixels=[4, 3, 2, 1])
    _, err = answer(capsys, fair, longer)
    assert err.startswith("warning: not only the loss differs")
    for line in (
        "steps trained: 100 (fair), 200 (longer)",
        "train.epochs: 6 (fair), 12 (longer)",
        "optimizer.lr: 0.001 (fair), 0.0005 (longer)",
    ):
        assert line in err
    assert "seed" not in err
    _, err = answer(capsys, fair, other)
    assert "evaluated masks" in err


def test_an_evaluation_written_elsewhere_is_compared_and_what_it_adjusted_is_told(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("plain", [0.9, 0.8, 0.1, 0.0], epochs=7)
    content = json.loads((run / "evaluation/test/metrics.json").read_text())
    adjusted = tmp_path / "adjusted"
    adjusted.mkdir()
    (adjusted / "metrics.json").write_text(json.dumps(content | {"prior_tau": 1.0}))
    out, err = answer(capsys, run, adjusted)
    assert "adjusted" in out
    assert "one seed" in out  # the settings are those of the run that was evaluated
    assert err.splitlines()[1:] == ["  evaluate.prior_tau: none (plain), 1.0 (adjusted)"]
    _, err = answer(capsys, adjusted, "--split", "val", code=2)
    assert "choose it by --split test" in err


def test_runs_of_older_versions_without_a_setting_are_compared(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    new, old = (make_run(name, [0.9, 0.8, 0.1, 0.0]) for name in ("new", "old"))
    (old / "config.yaml").write_text("name: old\nretired: 7\n")
    (old / "metrics.jsonl").unlink()
    assert answer(capsys, new, old)[1] == ""


def test_every_run_that_cannot_be_compared_is_told_with_the_next_step(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, elsewhere = make_run("good", [0.9, 0.8, 0.1, 0.0]), make_run("elsewhere", [0.9, 0.8, 0.1, 0.0], split="val")
    _, err = answer(capsys, good, elsewhere, tmp_path / "runs/god", tmp_path, good, code=2)
    assert f"not evaluated on test (only on val); run: python tools/evaluate.py {elsewhere} --split test" in err
    assert f"no such folder; did you mean {good}?" in err
    assert f"{tmp_path}: no run" in err
    assert f"{good}: named twice" in err


def test_runs_of_other_classes_are_refused(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [make_run("a", [0.9] * 4), make_run("b", [0.9] * 4, names=["road", "sky", "pole", "car"])]
    _, err = answer(capsys, *folders, code=2)
    assert "different classes" in err
    assert "b: road, sky, pole, car" in err


def test_a_broken_evaluation_is_told(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run("a", [0.9] * 4)
    (folder / "evaluation/test/metrics.json").write_text('{"classes": [')
    _, err = answer(capsys, folder, code=2)
    assert f"run again: python tools/evaluate.py {folder} --split test" in err


@pytest.mark.parametrize("num_runs", [1, 2, 12])
def test_the_table_fits_80_columns_whatever_the_number_of_runs(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], num_runs: int
) -> None:
    from rich.console import Console

    names = [f"a_long_name_of_the_run_{'x' * 20}{number}" for number in range(num_runs)]
    runs = read_runs([make_run(name, [0.9, 0.8, 0.1, number / 50]) for number, name in enumerate(names)], split="test")
    Console(width=80).print(terminal_table(runs, width=80))
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert sum("90.0" in line for line in lines) >= 1
    assert all(f"{number * 2}.0" in "".join(lines) for number in range(num_runs))
