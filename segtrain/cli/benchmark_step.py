"""The subject `step` of the command `benchmark`: a training step of the engine beside a bare loop, and its phases."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segtrain.cli.arguments import positive
from segtrain.cli.benchmark_cases import read_result

if TYPE_CHECKING:
    from rich.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.batch_size=16")
    parser.add_argument("--config", default="configs/quickstart.yaml", help="default: configs/quickstart.yaml")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:<number>; default: as the file says")
    parser.add_argument("--rounds", type=positive, default=15, help="of timing, after two to warm up; default: 15")
    parser.add_argument("--steps", type=positive, default=10, help="in a row, in each round; default: 10")
    parser.add_argument("--threads", type=positive, help="of torch; default: as torch chooses")
    parser.add_argument("--markdown", action="store_true", help="print the report in markdown")
    files = parser.add_mutually_exclusive_group()
    files.add_argument("--out", type=Path, metavar="FILE.json", help="write all figures there")
    files.add_argument("--show", type=Path, metavar="FILE.json", help="measure nothing: print what --out wrote")


def run(args: argparse.Namespace) -> int:
    """Measure and print the tables; return 0."""
    from segtrain.benchmark.step_report import step_markdown
    from segtrain.console import make_console, say
    from segtrain.files import write_json

    result = read_result(args.show, kind="step") if args.show is not None else _measure(args)
    console = make_console()
    if args.markdown:
        say(console, step_markdown(result))
    else:
        _print_tables(result, console)
    if args.out is not None:
        write_json(args.out, result)
        say(make_console(stderr=True), f"written: {args.out}")
    return 0


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    from segtrain.benchmark.step import StepSettings, benchmark_step
    from segtrain.config import load_config
    from segtrain.console import make_console, say

    device = [] if args.device is None else [f"device={args.device}"]
    config = load_config(args.config, [*args.overrides, *device])
    settings = StepSettings(config, rounds=args.rounds, steps=args.steps, threads=args.threads)
    errors = make_console(stderr=True)
    return benchmark_step(settings, tell=lambda text: say(errors, text))


def _print_tables(result: dict[str, Any], console: Console) -> None:
    from segtrain.benchmark.report import header_lines
    from segtrain.benchmark.step_report import NOTES, step_table

    for line in header_lines(result):
        console.print(line, markup=False)
    console.print()
    console.print(step_table(result))
    console.print(f"\n{NOTES}", markup=False)
