"""Writes the page that compares the losses of the libraries to standard output."""

from __future__ import annotations

from segtrain.console import make_console, say
from segtrain.testing.divergence import divergence_page

if __name__ == "__main__":
    say(make_console(), divergence_page().rstrip("\n"))
