"""The command `evaluate`: measure every class of a run on a split, as a table, JSON, CSV and a picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from segtrain.cli.arguments import add_run_arguments, open_run

if TYPE_CHECKING:
    from segtrain.engine.checkpoint import LoadedRun
    from segtrain.engine.evaluate import Evaluation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_run_arguments(parser)
    parser.add_argument("--split", default="val", help="split of the data set to measure on; default: val")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: <run folder>/evaluation/<split>")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as evaluate.batch_size=2")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table and write the files; return 0. Under torchrun the ranks share the images."""
    from segtrain.distributed import joined_ranks, rank, world_size
    from segtrain.engine.device import select_device
    from segtrain.engine.evaluate import evaluate
    from segtrain.engine.ranks import rank_device

    with joined_ranks(cuda=args.device != "cpu" and select_device("auto").type == "cuda"):
        if world_size() > 1:
            args.device = str(rank_device(args.device))
        loaded, config = open_run(args, overrides=args.overrides)
        evaluation = evaluate(
            config,
            model=loaded.model,
            normalize=loaded.normalize,
            split=args.split,
            frequencies=loaded.frequencies,
            thresholds=loaded.thresholds,
            show_progress=True,
        )
        if rank() == 0:
            _report(args, loaded, evaluation)
    return 0


def _report(args: argparse.Namespace, loaded: LoadedRun, evaluation: Evaluation) -> None:
    from segtrain.console import make_console, say
    from segtrain.files import write_csv, write_json
    from segtrain.report.confusion_plot import save_plot
    from segtrain.report.tables import class_table, csv_rows, metrics_json

    config, out = loaded.config, args.out or loaded.folder / "evaluation" / args.split
    content = {"checkpoint": str(loaded.path), "step": loaded.step, "epoch": loaded.epoch, **metrics_json(evaluation)}
    write_json(out / "metrics.json", content)
    write_csv(out / "classes.csv", csv_rows(evaluation))
    title = f"{config.name}, step {loaded.step}, {args.split}"
    save_plot(out / "confusion.png", evaluation.confusion, class_names=evaluation.class_names, title=title)
    console = make_console()
    say(console, f"{loaded.path} (step {loaded.step})")
    console.print(class_table(evaluation))
    if config.data.multi_label and config.evaluate.tune_thresholds:
        flatters = ", the split that is measured here: these numbers flatter" if args.split == "val" else ""
        say(console, f"the thresholds were chosen on val{flatters}")
    say(console, f"\nwritten to {out}: metrics.json, classes.csv, confusion.png")
