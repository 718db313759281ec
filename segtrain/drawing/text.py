"""Text in pictures: one font that is always there, and names cut to length."""

from __future__ import annotations

import functools
from pathlib import Path

from PIL import ImageFont


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans at `size` pixels: it comes with matplotlib and knows Latin, Greek and Cyrillic."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def text_width(text: str, size: int) -> int:
    """Return the width of one line of text in pixels."""
    return round(font(size).getlength(text))


def shorten(name: str, limit: int = 24) -> str:
    """Return the name on one line, cut in the middle where it is longer than `limit` characters."""
    name = " ".join(name.split())
    if len(name) <= limit:
        return name
    tail = (limit - 1) // 2
    return f"{name[: limit - 1 - tail]}…{name[len(name) - tail :]}"


def shorten_to_width(text: str, size: int, pixels: int) -> str:
    """Return the text, cut in the middle until it is at most `pixels` wide."""
    limit = len(text)
    while text_width(shorten(text, limit), size) > pixels and limit > 1:
        limit -= 1
    return shorten(text, limit)
