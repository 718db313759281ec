"""The command `scan`: check every image and mask of a data set, count the pixels and images of each class."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from segtrain.cli.arguments import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("config", help="YAML file, such as configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.on_bad=skip")
    parser.add_argument("--split", help="check and count this split alone; default: check all, count train")
    parser.add_argument("--workers", type=positive, metavar="N", help="threads; default: one for each core, 16 at most")
    parser.add_argument("--verify", action="store_true", help="read every file again, and check data.cache by content")
    parser.add_argument("--no-cache", action="store_true", help="neither use nor write the cache")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: <output>/scan/<name>/<split>")


def run(args: argparse.Namespace) -> int:
    """Print the table and write frequencies.json, images.csv and classes.png; return 0.

    Without --split the other splits whose folder or list is there are checked too; the first bad split ends it.
    Under torchrun each process reads its share, and the first one reports.
    """
    from segtrain.distributed import joined_ranks

    with joined_ranks():
        return _scan(args)


def _scan(args: argparse.Namespace) -> int:
    from segtrain.config import load_config
    from segtrain.console import make_console, say
    from segtrain.data.formats import present_splits
    from segtrain.data.frequencies import check_split
    from segtrain.data.pair_cache import drop_changed
    from segtrain.data.sources import FilePairs
    from segtrain.distributed import rank
    from segtrain.report import scan as report

    config = load_config(args.config, args.overrides)
    names = config.data.class_names
    split = args.split or "train"
    scan = partial(check_split, config.data, workers=args.workers, verify=args.verify, cache=not args.no_cache)
    result = scan(split)
    others = [] if args.split else [other for other in present_splits(config.data) if other != split]
    results = {split: result} | {other: scan(other) for other in others}
    num_checked = {other: results[other].frequencies.num_images for other in others}
    if rank() != 0:
        return 0
    console = make_console()
    if args.verify:
        for checked, found in results.items():
            for path in drop_changed(FilePairs(found.samples, config.data, split=checked)):
                say(console, f"data.cache: {path} did not hold what the files hold, and was removed", style="yellow")
    say(console, f"{config.name}: {split}")
    console.print(report.frequency_table(result.frequencies, names))
    for line in report.summary_lines(result, names):
        say(console, line)
    for other, num_images in num_checked.items():
        say(console, f"{other}: {num_images:,} images checked")
    folder: Path = args.out or Path(config.output) / "scan" / config.name / split
    report.write_frequencies(folder / "frequencies.json", result, names=names, split=split)
    report.write_index(folder / "images.csv", result, names=names)
    title = f"{config.name}: {split}"
    report.write_chart(folder / "classes.png", result.frequencies, names=names, title=title)
    say(console, f"written: {folder / 'frequencies.json'}, images.csv, classes.png")
    return 0
