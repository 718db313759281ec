"""The command `split`: make train, val and test (or folds) that each hold their part of every class, as list files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from segtrain.cli.arguments import positive

if TYPE_CHECKING:
    from rich.console import Console

    from segtrain.config.data import DataConfig
    from segtrain.data.grouping import Groups
    from segtrain.data.splits import Bools, Material, Shares

DEFAULT_FRACTIONS = "train=0.7,val=0.15,test=0.15"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("config", help="YAML file of the data set")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.on_bad=skip")
    parser.add_argument(
        "--from", dest="sources", metavar="SPLIT,..", help="splits to share out; default: all there are"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--fractions", metavar="NAME=PART,..", help=f"default: {DEFAULT_FRACTIONS}")
    what.add_argument("--folds", type=positive, metavar="K", help="K train and val pairs, each image once in a val")
    parser.add_argument("--test", type=float, metavar="PART", help="with --folds: keep this part apart for test")
    parser.add_argument(
        "--group-by",
        metavar="RULE",
        help="keep together by folder, by regex:PATTERN on the name (its first group), or by column:NAME of the table",
    )
    parser.add_argument("--group-duplicates", action="store_true", help="keep images that look the same together")
    parser.add_argument("--threshold", type=int, metavar="BITS", help="for --group-duplicates; see validate")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, other splits; default: 0")
    parser.add_argument("--out", default="lists", metavar="FOLDER", help="under data.root; default: lists")
    parser.add_argument("--force", action="store_true", help="replace lists that exist")
    parser.add_argument("--dry-run", action="store_true", help="show the splits, write nothing")
    parser.add_argument("--workers", type=positive, metavar="N", help="threads; default: one for each core, 16 at most")


def run(args: argparse.Namespace) -> int:
    """Print what each split holds and write the lists; return 0."""
    from segtrain.config import load_config
    from segtrain.console import make_console, say
    from segtrain.data.formats import all_splits
    from segtrain.data.splits import gather, share_out
    from segtrain.errors import ConfigError

    config = load_config(args.config, args.overrides)
    fractions = _fractions(args)
    if args.threshold is not None and not args.group_duplicates:
        raise ConfigError("--threshold belongs to --group-duplicates")
    sources = args.sources.split(",") if args.sources else all_splits(config.data)
    console = make_console()
    material = gather(config.data, sources, workers=args.workers)
    groups = _groups(args, config.data, material, tell=lambda text: say(console, text))
    shares = share_out(material.counts, groups, fractions, seed=args.seed)
    total = len(material.samples)
    left_out = f"; {material.num_bad} bad files are left out" if material.num_bad else ""
    say(console, f"{config.name}: {total:,} images of {', '.join(material.sources)}{left_out}")
    _show(console, shares, config.data)
    _write(console, args, config.data, material, shares)
    return 0


def _fractions(args: argparse.Namespace) -> dict[str, float]:
    from segtrain.errors import ConfigError

    if args.folds is None:
        if args.test is not None:
            raise ConfigError("--test belongs to --folds; without folds give all parts: --fractions train=..,val=..")
        return _parse_fractions(args.fractions or DEFAULT_FRACTIONS)
    if args.folds < 2:
        raise ConfigError("--folds: two at least")
    test = 0.0 if args.test is None else args.test
    if args.test is not None and not 0 < test < 1:
        raise ConfigError(f"--test: expected a part above 0 and below 1, found {test:g}")
    folds = {f"fold_{number}": (1 - test) / args.folds for number in range(args.folds)}
    return folds if args.test is None else folds | {"test": test}


def _parse_fractions(text: str) -> dict[str, float]:
    from segtrain.errors import ConfigError

    fractions: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            number = float(value)
        except ValueError:
            raise ConfigError(f"--fractions: {part!r} is no name=part, such as {DEFAULT_FRACTIONS}") from None
        if not name.replace("_", "").replace("-", "").isalnum() or name in fractions:
            raise ConfigError(f"--fractions: {name!r}: expected distinct names of letters, digits, - and _")
        fractions[name] = number
    return fractions


def _groups(args: argparse.Namespace, data: DataConfig, material: Material, *, tell: Callable[[str], None]) -> Groups:
    from segtrain.data.grouping import group_by, number_groups

    names = list(material.samples.column("name"))
    keys = group_by(args.group_by, names, material.columns) if args.group_by else None
    pairs = []
    if args.group_duplicates:
        from segtrain.data.duplicates import DEFAULT_THRESHOLD
        from segtrain.data.similar import similar_within

        threshold = DEFAULT_THRESHOLD if args.threshold is None else args.threshold
        found = similar_within(data, material, threshold=threshold, workers=args.workers)
        tell(f"pairs that look the same, at most {threshold} bits apart: {len(found):,}")
        pairs.append((found.first, found.second))
    return number_groups(len(names), keys=keys, pairs=pairs)


def _show(console: Console, shares: Shares, data: DataConfig) -> None:
    from segtrain.console import say
    from segtrain.report import splits as report

    for line in report.split_lines(shares):
        say(console, line)
    console.print()
    for table in report.class_tables(shares, data.class_names):
        console.print(table)
        console.print()
    for line in shares.gaps(data.class_names):
        say(console, line, style="yellow")
    say(console, f"distance from what was asked: {shares.cost():.3g} (0: each has its part of all images and classes)")


def _write(console: Console, args: argparse.Namespace, data: DataConfig, material: Material, shares: Shares) -> None:
    from segtrain.console import say
    from segtrain.data.formats import data_root
    from segtrain.data.splits import list_lines, write_lists
    from segtrain.report.splits import config_lines

    members = {name: shares.assigned == number for number, name in enumerate(shares.names)}
    uses = _uses(args, shares.names)
    root = data_root(data)
    lists = {
        path: list_lines(material.samples, _either(members, parts), root=root)
        for use in uses
        for path, parts in use.values()
    }
    if not args.dry_run:
        write_lists(data, lists, force=args.force)
        say(console, f"written under {root}: {', '.join(lists)}")
    say(console, "\nTo use them:\n" if len(uses) == 1 else "\nTo use the first of them, and the others likewise:\n")
    for line in config_lines(data, {name: path for name, (path, _) in uses[0].items()}):
        say(console, line)


def _uses(args: argparse.Namespace, names: Sequence[str]) -> list[dict[str, tuple[str, list[str]]]]:
    """For each training that the splits serve: split name -> its list, and the shares that are in it."""
    if args.folds is None:
        return [{name: (f"{args.out}/{name}.txt", [name]) for name in names}]
    folds = [name for name in names if name != "test"]
    rest = {"test": (f"{args.out}/test.txt", ["test"])} if "test" in names else {}
    return [
        {
            "train": (f"{args.out}/{fold}/train.txt", [other for other in folds if other != fold]),
            "val": (f"{args.out}/{fold}/val.txt", [fold]),
            **rest,
        }
        for fold in folds
    ]


def _either(members: dict[str, Bools], parts: Sequence[str]) -> Bools:
    chosen = members[parts[0]].copy()
    for part in parts[1:]:
        chosen |= members[part]
    return chosen
