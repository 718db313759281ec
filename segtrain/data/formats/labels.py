"""What the names of a data set's labels mean, where it has names in place of numbers: the raw values of readers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from segtrain.config.data import DataConfig
from segtrain.config.layouts import IGNORE, NONE, RAW_IGNORED, RAW_NONE
from segtrain.errors import DataError, some, suggest


@dataclass(frozen=True)
class NameRules:
    """The raw value of each name: the class's number, or one of RAW_IGNORED and RAW_NONE.

    known: those of the classes and of data.name_map. others: that of all other names; None: they are errors.
    """

    known: tuple[tuple[str, int], ...]
    others: int | None = None

    @classmethod
    def from_config(cls, data: DataConfig, *, others: str | None = None) -> NameRules:
        """From the classes, data.name_map and, for all other names, a class, 'ignore' or 'none'."""
        classes = {name: number for number, name in enumerate(data.class_names)}
        mapped = {name: raw_value(data, label) for name, label in (data.name_map or {}).items()}
        return cls(tuple((classes | mapped).items()), None if others is None else raw_value(data, others))

    def values(self, names: Iterable[str], *, source: Path) -> dict[str, int]:
        """The raw value of each name.

        Raises:
            DataError: names without a meaning.
        """
        known = dict(self.known)
        unknown = [name for name in names if name not in known]
        if unknown and self.others is None:
            hints = "".join(suggest(name, known) for name in unknown[:1])
            raise DataError(
                f"{source} has labels that are no class: {some(unknown, limit=20)}{hints}. Name each in data.classes, "
                f"or say what it is, such as data.name_map: {{{unknown[0]}: ignore}}"
            )
        return known | {name: self.others for name in unknown if self.others is not None}


def raw_value(data: DataConfig, label: int | str) -> int:
    """The raw value that readers give for a class, 'ignore' or 'none'."""
    if isinstance(label, int):
        return label
    words = {IGNORE: RAW_IGNORED, NONE: RAW_NONE}
    return words[label] if label in words else data.class_names.index(label)
