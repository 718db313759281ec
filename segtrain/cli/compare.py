"""The command `compare`: one table of what several evaluated runs reach on each class."""

from __future__ import annotations

import argparse
from pathlib import Path

FORMATS = (".md", ".csv")
RATIOS = ("iou", "dice", "precision", "recall")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="run", help="folders of runs, or of evaluate --out")
    parser.add_argument("--split", default="test", help="split that they were evaluated on; default: test")
    parser.add_argument("--ratio", choices=RATIOS, default="iou", help="what to show of the classes; default: iou")
    parser.add_argument("--sort", metavar="KEY", help="name, miou, miou_tail or a class, best first; default: as given")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table too: .md (Markdown) or .csv")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")


def run(args: argparse.Namespace) -> int:
    """Print the table and what else differs between the runs, and write the file; return 0."""
    from segtrain.console import make_console, say
    from segtrain.errors import ConfigError
    from segtrain.files import write_csv, write_whole
    from segtrain.report.comparison import read_runs, unequal
    from segtrain.report.comparison_table import csv_table, markdown, sort_runs, terminal_table

    if args.out is not None and args.out.suffix not in FORMATS:
        raise ConfigError(f"--out {args.out}: the name chooses the format; expected one that ends in .md or .csv")
    runs = sort_runs(read_runs(args.runs, split=args.split, ratio=args.ratio), args.sort)
    if args.out is not None and args.out.suffix == ".csv":
        write_csv(args.out, csv_table(runs))
    elif args.out is not None:
        write_whole(args.out, markdown(runs).encode())
    console, errors = make_console(), make_console(stderr=True)
    if args.markdown:
        say(console, markdown(runs).rstrip("\n"))
    else:
        console.print(terminal_table(runs, width=console.width))
    differences = unequal(runs)
    if differences:
        say(errors, "warning: not only the loss differs, so that the table may show what these do:", style="yellow")
        for line in differences:
            say(errors, f"  {line}")
    if args.out is not None:
        say(errors, f"written: {args.out}")
    return 0
