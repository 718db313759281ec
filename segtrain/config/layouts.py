"""What each layout of a data set takes: its options, and which keys of the data section belong to it alone."""

from __future__ import annotations

from collections.abc import Iterable

# Keys of the data section that only some layouts read: elsewhere they would be ignored, so they are refused.
LAYOUTS_OF_KEYS: dict[str, tuple[str, ...]] = {
    "images": ("folders",),
    "masks": ("folders",),
}


def explain_foreign_keys(layout: str, changed: Iterable[str]) -> str:
    """Say which of the changed keys of a data section its layout does not read; empty when it reads all."""
    foreign = [key for key in LAYOUTS_OF_KEYS if key in set(changed) and layout not in LAYOUTS_OF_KEYS[key]]
    return "; ".join(
        f"data.{key} belongs to layout: {' or '.join(LAYOUTS_OF_KEYS[key])}, and the layout is {layout}: drop the key"
        for key in foreign
    )
