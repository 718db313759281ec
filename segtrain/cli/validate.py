"""The command `validate`: read every file of a data set and report all that is wrong, grouped by kind."""

from __future__ import annotations

import argparse
from pathlib import Path

from segtrain.cli.arguments import positive

FIRST_FILES = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("config", help="YAML file of the data set")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.root=data/mine")
    parser.add_argument("--splits", metavar="SPLIT,..", help="look at these alone; default: all there are")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings with all their files")
    parser.add_argument("--files", type=positive, default=FIRST_FILES, metavar="N", help="show N of each kind")
    parser.add_argument("--strict", action="store_true", help="exit 1 on warnings too")
    parser.add_argument("--accept", metavar="KIND,..", help="report these kinds, but do not exit 1 on them")
    parser.add_argument(
        "--threshold", type=int, metavar="BITS", help="near-duplicates differ in at most so many of 252; default: 24"
    )
    parser.add_argument("--no-duplicates", action="store_true", help="do not compare the images of the splits")
    parser.add_argument("--workers", type=positive, metavar="N", help="threads; default: one for each core, 16 at most")
    parser.add_argument("--verify", action="store_true", help="ignore the cache: read every file again")
    parser.add_argument("--no-cache", action="store_true", help="neither use nor write the cache")


def run(args: argparse.Namespace) -> int:
    """Print the findings; return 0, or 1 where there are problems (with --strict: or warnings)."""
    from segtrain.config import load_config
    from segtrain.console import make_console, say
    from segtrain.data.duplicates import DEFAULT_THRESHOLD
    from segtrain.data.validation import TITLES, validate
    from segtrain.errors import ConfigError, suggest
    from segtrain.files import write_json
    from segtrain.report.validation import validation_lines, verdict

    config = load_config(args.config, args.overrides)
    accept = args.accept.split(",") if args.accept else []
    for kind in accept:
        if kind not in TITLES:
            raise ConfigError(f"--accept: no kind {kind!r}{suggest(kind, TITLES)}; kinds: {', '.join(TITLES)}")
    if args.no_duplicates and args.threshold is not None:
        raise ConfigError("--threshold and --no-duplicates exclude each other")
    threshold = DEFAULT_THRESHOLD if args.threshold is None else args.threshold
    result = validate(
        config.data,
        args.splits.split(",") if args.splits else None,
        threshold=None if args.no_duplicates else threshold,
        workers=args.workers,
        verify=args.verify,
        cache=not args.no_cache,
    )
    failing = result.failing(strict=args.strict, accept=accept)
    console = make_console()
    say(console, f"{config.name}: {config.data.root}")
    for line in validation_lines(result, width=min(console.width, 100), num_files=args.files):
        say(console, line)
    say(console, f"\n{verdict(result, failing)}", style="red" if failing else "green")
    if args.json is not None:
        content = {"name": config.name, "ok": not failing, "failing": [one.kind for one in failing]}
        write_json(args.json, content | result.to_dict(config.data))
    return 1 if failing else 0
