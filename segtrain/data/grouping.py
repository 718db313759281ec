"""Which samples belong together, so that no split parts them: by folder, by name, by a column, or by their looks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtrain.data.duplicates import connected
from segtrain.errors import ConfigError, DataError, listing, suggest

Groups = NDArray[np.int64]

FORMS = "folder, regex:<pattern> or column:<name>"


def group_by(rule: str, names: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """The key of each sample by a rule: `folder`, `regex:<pattern>` on its name, or `column:<name>` of its table.

    folder: the folders of the image under the folder of its split. regex: the first group that the pattern captures
    (the whole match where it has none), searched in the name, which is the path without suffix.

    Raises:
        ConfigError: another rule, a pattern that is none, or a column that the data do not have.
        DataError: names in which the pattern is not found, or lines without a value in the column.
    """
    kind, _, argument = rule.partition(":")
    if kind == "folder" and not argument:
        return [PurePosixPath(name).parent.as_posix() for name in names]
    if kind == "regex" and argument:
        return _by_pattern(argument, names)
    if kind == "column" and argument:
        return _by_column(argument, names, columns)
    raise ConfigError(f"--group-by {rule!r}: expected {FORMS}{suggest(kind, ('folder', 'regex', 'column'))}")


def _by_pattern(text: str, names: Sequence[str]) -> list[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ConfigError(f"--group-by regex:{text}: no regular expression ({error})") from error
    found = [pattern.search(name) for name in names]
    without = [name for name, match in zip(names, found, strict=True) if match is None]
    if without:
        head = f"--group-by regex:{text}: not found in {len(without)} of {len(names)} names, such as these"
        raise DataError(listing(head, without))
    number = 1 if pattern.groups else 0
    return [match[number] or "" for match in found if match is not None]


def _by_column(column: str, names: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[str]:
    if column not in columns:
        held = ", ".join(columns) or "none: only data.layout table has columns"
        raise ConfigError(f"--group-by column:{column}: no such column{suggest(column, columns)}; columns: {held}")
    values = ["" if value is None else str(value).strip() for value in columns[column]]
    without = [name for name, value in zip(names, values, strict=True) if not value]
    if without:
        raise DataError(listing(f"--group-by column:{column}: {len(without)} samples without a value", without))
    return values


def number_groups(num_samples: int, *, keys: Sequence[str] | None, pairs: Sequence[tuple[Groups, Groups]]) -> Groups:
    """Number what belongs together: samples of one key, and the two of each pair, int64 [num_samples] from 0.

    keys: one for each sample, or None where each is a group of its own. pairs: indices of samples, as two arrays.
    """
    firsts, seconds = [first for first, _ in pairs], [second for _, second in pairs]
    if keys is not None:
        _, leaders, numbers = np.unique(np.array(keys, np.str_), return_index=True, return_inverse=True)
        firsts.append(np.arange(num_samples))
        seconds.append(leaders[numbers].astype(np.int64))
    none = np.zeros(0, np.int64)
    return connected(num_samples, np.concatenate([none, *firsts]), np.concatenate([none, *seconds]))
