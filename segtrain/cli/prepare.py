"""The command `prepare`: unpack an archive safely, recognise its layout, and print the data section to paste."""

from __future__ import annotations

import argparse
from pathlib import Path

from segtrain.cli.arguments import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "source", help="a zip or tar archive (plain, gz, bz2 or xz), or a folder that is unpacked already"
    )
    parser.add_argument("folder", nargs="?", help="new folder for the contents of the archive, such as data/mine")
    parser.add_argument(
        "--max-gib", type=positive, default=500, metavar="N", help="refuse archives that become larger; default: 500"
    )
    parser.add_argument(
        "--max-ratio",
        type=positive,
        default=200,
        metavar="N",
        help="refuse archives that become so many times as large as they are; default: 200",
    )


def run(args: argparse.Namespace) -> int:
    """Unpack, recognise and print; return 0, or 1 where no layout fits what is in the folder."""
    from segtrain.config.data import DataConfig
    from segtrain.console import make_console, say
    from segtrain.data.proposal import data_section, survey_masks
    from segtrain.data.recognize import recognize

    notes = make_console(stderr=True)
    source = Path(args.source).expanduser()
    folder = source if source.is_dir() else Path(args.folder or "").expanduser()
    _check_arguments(args, source)
    if folder != source:
        say(notes, _unpack(source, folder, args))
    found = recognize(folder)
    if found is None:
        say(notes, f"no layout recognised in {folder}: data/README.md shows those there are; lists and tables fit any")
        return 1
    max_pixels = DataConfig.model_fields["max_pixels"].default
    survey = survey_masks(found.masks, max_pixels=max_pixels) if found.classes is None else None
    say(notes, f"layout: {found.layout}; paste this into a training file, check it, then run tools/scan.py on that:")
    say(make_console(), data_section(found, survey))
    return 0


def _check_arguments(args: argparse.Namespace, source: Path) -> None:
    from segtrain.errors import ConfigError, DataError

    if "://" in args.source:
        raise ConfigError(f"{args.source}: prepare fetches nothing; download the archive first, and check its sum")
    if source.is_dir() and args.folder is not None:
        raise ConfigError(f"{source} is a folder, which is read where it is: drop {args.folder}")
    if not source.exists():
        raise DataError(f"no such file: {source}")
    if not source.is_dir() and args.folder is None:
        raise ConfigError(f"name a new folder for the contents of {source}, such as data/{source.stem}")


def _unpack(source: Path, folder: Path, args: argparse.Namespace) -> str:
    from segtrain.console import progress
    from segtrain.data.archives import Limits, unpack

    limits = Limits(max_bytes=args.max_gib * 2**30, max_ratio=args.max_ratio)
    with progress(f"unpack {source.name}", source.stat().st_size) as advance:
        done = unpack(source, folder, limits=limits, advance=advance)
    return f"unpacked into {folder}: {done.files:,} files, {done.num_bytes / 2**20:,.1f} MiB"
