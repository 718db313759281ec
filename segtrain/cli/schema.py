"""The command `schema`: write the JSON Schema with which editors complete and check training files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--out", type=Path, metavar="FILE", help="write to this file; default: standard output")


def run(args: argparse.Namespace) -> int:
    """Write the schema; return 0."""
    from segtrain.config.schema_json import json_schema_text

    text = json_schema_text()
    if args.out is None:
        sys.stdout.write(text)
        return 0
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    sys.stdout.write(f"wrote {args.out}\n")
    return 0
