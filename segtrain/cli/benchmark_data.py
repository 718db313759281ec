"""The subject `data` of the command `benchmark`: loader, scan and cache against the bare decode of the same files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from segtrain.cli.arguments import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("config", nargs="?", default="configs/quickstart.yaml", help="default: configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.train_transforms=[]")
    parser.add_argument("--images", type=positive, default=32, help="samples of the training split; default: 32")
    parser.add_argument("--batch", type=positive, default=8, help="default: 8")
    parser.add_argument("--rounds", type=positive, default=9, help="of timing, after two to warm up; default: 9")
    parser.add_argument("--workers", type=int, default=0, help="also measure the loader with that many; default: none")
    parser.add_argument("--parts", nargs="+", choices=("loader", "cache", "scan"), help="these alone; default: all")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write all figures there")


def run(args: argparse.Namespace) -> int:
    """Measure and print the table; return 0."""
    from segtrain.benchmark.data import PARTS, DataSettings, benchmark_data
    from segtrain.benchmark.environment import busy_warning, environment_lines
    from segtrain.config import load_config
    from segtrain.console import make_console, say
    from segtrain.files import write_json

    config = load_config(args.config, args.overrides)
    parts = tuple(args.parts or PARTS)
    settings = DataSettings(config.data, args.images, args.batch, args.rounds, max(0, args.workers), parts)
    errors = make_console(stderr=True)
    result = benchmark_data(settings, tell=lambda text: say(errors, text))
    console = make_console()
    for line in environment_lines(result["environment"]):
        say(console, line)
    warning = busy_warning(result["environment"])
    if warning:
        say(console, warning, style="yellow")
    say(console, f"{result['settings']}; transforms: {', '.join(result['transforms']) or 'none'}")
    console.print(_table(result))
    if args.out is not None:
        write_json(args.out, result)
        say(errors, f"written: {args.out}")
    return 0


def _table(result: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table()
    table.add_column("subject", no_wrap=True)
    for title in ("images/s", "x decode", "x decode + transforms", "aim", "found", "by CPU time"):
        table.add_column(title, justify="right")
    for row in result["rows"]:
        aim = row.get("aim")
        told = ("", "", "")
        if aim is not None:
            cpu = aim["found_by_cpu_time"]
            least = f">= {aim['at_least']:.2f} x {aim['against']}"
            told = (least, f"{aim['found']:.2f}", "" if cpu is None else f"{cpu:.2f}")
        table.add_row(
            row["name"],
            f"{row['images_per_second']:.1f}",
            f"{row['to_decode']:.2f}",
            "" if row["to_transforms"] is None else f"{row['to_transforms']:.2f}",
            *told,
        )
    return table
