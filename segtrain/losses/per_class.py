"""Numbers and classes as a configuration gives them, in the order of the classes, for losses built in code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from segtrain.config import per_class
from segtrain.errors import ConfigError


def in_class_order(
    given: Sequence[float] | Mapping[str, float],
    *,
    num_classes: int,
    class_names: Sequence[str] | None,
    key: str,
    what: str,
) -> tuple[float, ...]:
    """Return one number for each class; see `segtrain.config.per_class`. Raises ConfigError where they do not fit."""
    try:
        return per_class.in_class_order(given, num_classes=num_classes, class_names=class_names, key=key, what=what)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def class_numbers(
    classes: Sequence[str | int] | None, *, num_classes: int, class_names: Sequence[str] | None, key: str
) -> tuple[int, ...]:
    """Return the numbers of classes, all for None; see `segtrain.config.per_class`. Raises ConfigError."""
    try:
        return per_class.class_numbers(classes, num_classes=num_classes, class_names=class_names, key=key)
    except ValueError as error:
        raise ConfigError(str(error)) from error
