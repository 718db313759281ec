"""Writes the page that compares the losses of the libraries to standard output."""

from __future__ import annotations

import sys

from segtrain.console import make_console, say
from segtrain.errors import SegtrainError
from segtrain.testing.divergence import divergence_page


def main() -> int:
    """Print the page; return 2 with a message where it cannot be made."""
    try:
        page = divergence_page()
    except SegtrainError as error:
        say(make_console(stderr=True), f"error: {error}")
        return 2
    say(make_console(), page.rstrip("\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
