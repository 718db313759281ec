"""The command `benchmark confusion`: how fast a batch is counted, beside torchmetrics and torch's operators."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from segtrain.cli.arguments import positive
from segtrain.cli.benchmark_cases import add_case_arguments, make_cases, read_result

if TYPE_CHECKING:
    from rich.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_case_arguments(parser)
    parser.add_argument("--rounds", type=positive, default=15, help="of timing, after two to warm up; default: 15")
    parser.add_argument("--threads", type=positive, help="of torch; default: as torch chooses")
    parser.add_argument("--no-memory", action="store_true", help="time alone")
    parser.add_argument("--markdown", action="store_true", help="print the report in markdown")
    files = parser.add_mutually_exclusive_group()
    files.add_argument("--out", type=Path, metavar="FILE.json", help="write all figures there")
    files.add_argument("--show", type=Path, metavar="FILE.json", help="measure nothing: print what --out wrote")


def run(args: argparse.Namespace) -> int:
    """Measure and print the tables; return 0."""
    from segtrain.benchmark import ConfusionSettings, benchmark_confusion
    from segtrain.benchmark.confusion_report import confusion_markdown
    from segtrain.console import make_console, say
    from segtrain.files import write_json

    errors = make_console(stderr=True)
    if args.show is not None:
        result = read_result(args.show, kind="confusion")
    else:
        settings = ConfusionSettings(
            cases=make_cases(args), rounds=args.rounds, threads=args.threads, memory=not args.no_memory
        )
        result = benchmark_confusion(settings, tell=lambda text: say(errors, text))
    console = make_console()
    if args.markdown:
        say(console, confusion_markdown(result))
    else:
        _print_tables(result, console)
    if args.out is not None:
        write_json(args.out, result)
        say(errors, f"written: {args.out}")
    return 0


def _print_tables(result: dict[str, object], console: Console) -> None:
    from segtrain.benchmark.confusion_report import NOTES, confusion_table
    from segtrain.benchmark.report import header_lines

    for line in header_lines(result):
        console.print(line, markup=False)
    cases = result["cases"]
    assert isinstance(cases, list)
    for case in cases:
        console.print()
        console.print(confusion_table(case))
    console.print(f"\n{NOTES}", markup=False)
