"""Writes the data section for a folder whose layout was recognised: classes that nothing names are not guessed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segtrain.data.formats.base import image_files
from segtrain.data.images import read_checked
from segtrain.data.masks import decode_colors, decode_mask, histogram, narrow
from segtrain.data.problems import FileProblem
from segtrain.data.recognize import Recognized
from segtrain.errors import DataError, some

MAX_MASKS = 200
MAX_VALUES = 256  # of more, numbers are those of instances rather than of classes
MAX_COLORS = 64
VOID = 255
PLAIN_WORD = re.compile(r"[A-Za-z_][\w/-]*( [\w/-]+)*")
WORDS_OF_YAML = ("true", "false", "null", "ignore", "none", "yes", "no", "on", "off")


@dataclass
class Survey:
    """What some of the masks hold: pixels of each value, or of each colour where they hold colours."""

    num_masks: int = 0
    num_read: int = 0
    values: Counter[int] = field(default_factory=Counter)
    colors: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def survey_masks(folders: Iterable[Path], *, max_pixels: int) -> Survey:
    """Count values or colours in at most MAX_MASKS of the masks below some folders, evenly chosen by their names."""
    files = sorted(path for folder in folders for path in image_files(folder))
    survey = Survey(num_masks=len(files))
    chosen = np.unique(np.linspace(0, len(files) - 1, min(len(files), MAX_MASKS)).round().astype(int))
    for path in (files[place] for place in chosen):
        try:
            _count(path, survey, max_pixels=max_pixels)
        except DataError as error:
            survey.problems.append(str(error))
    return survey


def _count(path: Path, survey: Survey, *, max_pixels: int) -> None:
    data, header = read_checked(path, max_pixels=max_pixels)
    try:
        counts = histogram(narrow(decode_mask(data, header, path=path)))
        held = np.flatnonzero(counts)
        survey.values.update(dict(zip(held.tolist(), counts[held].tolist(), strict=True)))
    except FileProblem:
        colors = decode_colors(data, header, path=path).reshape(-1, 3)
        found, numbers = np.unique(colors, axis=0, return_counts=True)
        for color, number in zip(found.tolist(), numbers.tolist(), strict=True):
            survey.colors[(color[0], color[1], color[2])] += number
    survey.num_read += 1


def data_section(found: Recognized, survey: Survey | None) -> str:
    """The lines of YAML to paste, with comments on what is to be checked.

    Where nothing names the classes, each value or colour of the masks gets a name to be replaced.
    """
    section: dict[str, Any] = {"root": str(found.root), "layout": found.layout}
    section |= {key: value for key, value in found.options.items() if key in ("images", "masks", "mask_end")}
    section["splits"] = found.splits
    section |= {key: value for key, value in found.options.items() if key not in section}
    lines = ["data:", *(f"  {key}: {_yaml(value)}" for key, value in section.items())]
    lines += [f"  # {note}" for note in _missing_splits(found.splits)]
    if found.classes is not None:
        lines += [f"  # {note}" for note in found.notes]
        return "\n".join([*lines, f"  classes: {_yaml(found.classes)}"])
    return "\n".join([*lines, *_unnamed_classes(survey or Survey())])


def _missing_splits(splits: Mapping[str, str]) -> list[str]:
    lost = [split for split in ("train", "val") if split not in splits]
    return [f"no split named {' or '.join(lost)} was found: name one, or make it with segtrain split"] if lost else []


def _unnamed_classes(survey: Survey) -> list[str]:
    head = f"  # nothing here names the classes; found in {survey.num_read} of {survey.num_masks} masks:"
    bad = (
        [f"  # masks that cannot be read: {len(survey.problems)}, such as {survey.problems[0]}"]
        if survey.problems
        else []
    )
    if survey.colors and not survey.values:
        return [head, *bad, *_from_colors(survey.colors)]
    if survey.colors:
        return [head, *bad, "  # some masks hold numbers and some colours: they cannot all be read", "  classes: []"]
    return [head, *bad, *_from_values(survey.values)]


def _from_values(values: Counter[int]) -> list[str]:
    total = sum(values.values())
    held = sorted(values)
    listed = some([f"{value} ({100 * values[value] / total:.3g} %)" for value in held], limit=40)
    comment = f"  # values {listed or 'none'}"
    if not held or len(held) > MAX_VALUES:
        return [comment, "  classes: []   # too many values for classes, or none: are these masks?"]
    numbers = [value for value in held if value != VOID]
    names = [f"class_{value}" for value in numbers]
    if numbers == list(range(len(numbers))) and len(numbers) > 1:
        more = ["  # 255 counts nowhere, unless label_map says what it is"] if VOID in values else []
        return [comment, *more, f"  classes: {_yaml(names)}   # to be named"]
    names = [f"class_{value}" for value in held]
    mapping = dict(zip(held, names, strict=True))
    return [
        comment,
        f"  label_map: {_yaml(mapping)}   # value: class, or ignore",
        f"  classes: {_yaml(names)}   # to be named",
    ]


def _from_colors(colors: Counter[tuple[int, int, int]]) -> list[str]:
    total = sum(colors.values())
    if len(colors) > MAX_COLORS:
        return [f"  # {len(colors)} colours: more than classes have", "  classes: []   # are these masks?"]
    held = [color for color, _ in colors.most_common()]
    names = [f"class_{number}" for number in range(len(held))]
    lines = ["  colors:   # class, or ignore: its colours in the masks"]
    for name, color in zip(names, held, strict=True):
        lines.append(f"    {name}: {_yaml(color)}   # {100 * colors[color] / total:.3g} % of the pixels")
    return [*lines, f"  classes: {_yaml(names)}   # to be named"]


def _yaml(value: Any) -> str:
    """A value as YAML in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_yaml(key)}: {_yaml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_yaml(inner) for inner in value) + "]"
    if isinstance(value, str):
        return _text(value)
    return str(value)


def _text(value: str) -> str:
    plain = PLAIN_WORD.fullmatch(value) is not None and value.lower() not in WORDS_OF_YAML
    if plain or value in ("ignore", "none"):
        return value
    escaped = "".join(
        character if character.isprintable() else f"\\u{ord(character):04x}"
        for character in value.replace("\\", "\\\\").replace('"', '\\"')
    )
    return f'"{escaped}"'
