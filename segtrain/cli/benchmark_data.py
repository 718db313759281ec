"""The subject `data` of the command `benchmark`: loader, scan, cache, smaller decoding and long lists."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segtrain.cli.arguments import positive

PARTS = ("loader", "cache", "scan")
DEFAULTS: dict[str, Any] = {"config": "configs/quickstart.yaml", "images": 32, "batch": 8, "workers": 0, "parts": None}
OF_REDUCED, OF_INDEX = ("config", "images"), ()  # which of these the other measurements read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.set_defaults(**DEFAULTS)
    parser.add_argument("config", nargs="?", help="default: configs/quickstart.yaml", default=DEFAULTS["config"])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.train_transforms=[]")
    parser.add_argument("--images", type=positive, help="samples of the training split; default: 32")
    parser.add_argument("--batch", type=positive, help="default: 8")
    parser.add_argument("--rounds", type=positive, default=9, help="of timing, after two to warm up; default: 9")
    parser.add_argument("--workers", type=int, help="also measure the loader with that many; default: none")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="these alone; default: all")
    others = parser.add_mutually_exclusive_group()
    others.add_argument("--reduced", action="store_true", help="instead: data.decode: reduced against exact, of JPEG")
    others.add_argument(
        "--index", type=positive, metavar="N", help="instead: a list of N lines that it writes, such as 1000000"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write all figures there")


def run(args: argparse.Namespace) -> int:
    """Measure and print the table; return 0."""
    from segtrain.benchmark.environment import busy_warning, environment_lines
    from segtrain.console import make_console, say
    from segtrain.files import write_json

    errors = make_console(stderr=True)
    if args.index is not None:
        result, table = _index(args)
    elif args.reduced:
        result, table = _reduced(args)
    else:
        result, table = _reading(args)
    console = make_console()
    for line in environment_lines(result["environment"]):
        say(console, line)
    warning = busy_warning(result["environment"])
    if warning:
        say(console, warning, style="yellow")
    say(console, f"{result['settings']}")
    console.print(table)
    for note in result.get("notes", ()):
        say(console, note)
    if args.out is not None:
        write_json(args.out, result)
        say(errors, f"written: {args.out}")
    return 0


def _refuse_unread(args: argparse.Namespace, option: str, *, read: tuple[str, ...]) -> None:
    """Raise ConfigError for an argument that this measurement does not read."""
    from segtrain.errors import ConfigError

    given = [name for name, default in DEFAULTS.items() if name not in read and getattr(args, name) != default]
    given += ["key=value"] if args.overrides and "config" not in read else []
    if given:
        told = ", ".join(name if name in ("config", "key=value") else f"--{name}" for name in given)
        raise ConfigError(f"{option} does not read {told}: drop one of them")


def _reading(args: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    from segtrain.benchmark.data import DataSettings, benchmark_data
    from segtrain.config import load_config
    from segtrain.console import make_console, say

    config = load_config(args.config, args.overrides)
    parts = tuple(args.parts or PARTS)
    settings = DataSettings(config.data, args.images, args.batch, args.rounds, max(0, args.workers), parts)
    errors = make_console(stderr=True)
    result = benchmark_data(settings, tell=lambda text: say(errors, text))
    result["notes"] = [f"transforms: {', '.join(result['transforms']) or 'none'}"]
    return result, _table(result)


def _table(result: dict[str, Any]) -> Any:
    titles = ("images/s", "x decode", "x decode + transforms", "aim", "found", "by CPU time")
    rows = []
    for row in result["rows"]:
        aim = row.get("aim")
        told = ("", "", "")
        if aim is not None:
            cpu = aim["found_by_cpu_time"]
            least = f">= {aim['at_least']:.2f} x {aim['against']}"
            told = (least, f"{aim['found']:.2f}", "" if cpu is None else f"{cpu:.2f}")
        speed, to_decode, to_both = row["images_per_second"], row["to_decode"], row["to_transforms"]
        rows.append(
            (row["name"], f"{speed:.1f}", f"{to_decode:.2f}", "" if to_both is None else f"{to_both:.2f}", *told)
        )
    return _as_table(("subject", *titles), rows)


def _index(args: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    from segtrain.benchmark.data_index import benchmark_index

    _refuse_unread(args, "--index", read=OF_INDEX)
    result = benchmark_index(args.index, rounds=args.rounds)
    rows = [
        (
            row["name"],
            f"{row['seconds']:.2f}",
            f"{row['cpu_seconds']:.2f}",
            "" if row["to_plain_by_cpu_time"] is None else f"{row['to_plain_by_cpu_time']:.2f}",
        )
        for row in result["rows"]
    ]
    peak, of_table = (
        "unknown" if result[key] is None else f"{result[key] / 1e6:.0f} MB"
        for key in ("peak_bytes", "table_peak_bytes")
    )
    sent = f"size as sent: {result['sent_bytes'] / 1e6:.0f} MB"
    result["notes"] = [f"peak of memory while it opens: {peak}, as a table {of_table}; {sent}"]
    return result, _as_table(("subject", "seconds", "CPU seconds", "x plain Python, by CPU time"), rows)


def _reduced(args: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    from segtrain.benchmark.data_reduced import benchmark_reduced
    from segtrain.config import load_config

    _refuse_unread(args, "--reduced", read=OF_REDUCED)
    result = benchmark_reduced(load_config(args.config, args.overrides).data, images=args.images, rounds=args.rounds)
    rows = [
        (
            " x ".join(map(str, row["input_size"])),
            *("" if row[key] is None else f"{row[key]:.2f}" for key in ("image_by_cpu_time", "item_by_cpu_time")),
            f"{row['levels_of_255']:.2f}",
        )
        for row in result["rows"]
    ]
    result["notes"] = ["times: CPU seconds of the reduced way over those of the exact one"]
    titles = ("input_size", "decode and resize", "item of the evaluation", "pixels differ, of 255 levels")
    return result, _as_table(titles, rows)


def _as_table(titles: tuple[str, ...], rows: Sequence[Sequence[str]]) -> Any:
    from rich.table import Table

    table = Table()
    table.add_column(titles[0], no_wrap=True)
    for title in titles[1:]:
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(*row)
    return table
