"""Numbers and classes as a configuration gives them, put in the order of the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from segtrain.errors import suggest


def in_class_order(
    given: Sequence[float] | Mapping[str, float],
    *,
    num_classes: int,
    class_names: Sequence[str] | None,
    key: str,
    what: str,
) -> tuple[float, ...]:
    """Return one number for each class, from a list or {class name: number}.

    Args:
        given: the numbers.
        num_classes: C.
        class_names: in class order, if known.
        key: where they stand in the configuration, for messages.
        what: what one of them is called, such as "weight".

    Raises:
        ValueError: too few or too many, unknown or missing names, or names where the classes have none.
    """
    names = [str(c) for c in range(num_classes)] if class_names is None else list(class_names)
    if isinstance(given, Mapping):
        if class_names is None:
            raise ValueError(
                f"{key} names classes, but the class names are not known here: pass class_names to "
                f"build_loss, or give a list of {num_classes} {what}s."
            )
        return _by_name(given, names, key=key, what=what)
    if len(given) != num_classes:
        raise ValueError(
            f"{key} holds {len(given)} {what}s, expected one for each of the {num_classes} "
            f"classes in this order: {', '.join(names)}."
        )
    return tuple(given)


def class_numbers(
    classes: Sequence[str | int] | None, *, num_classes: int, class_names: Sequence[str] | None, key: str
) -> tuple[int, ...]:
    """Return the numbers of classes given by name or number; all of them for None.

    Raises:
        ValueError: a class that there is not, or twice the same.
    """
    if classes is None:
        return tuple(range(num_classes))
    names = [] if class_names is None else list(class_names)
    numbers = []
    for entry in classes:
        if isinstance(entry, int) and entry < num_classes:
            numbers.append(entry)
        elif entry in names:
            numbers.append(names.index(str(entry)))
        else:
            known = f"classes: {', '.join(names)}" if names else "pass class_names to build_loss to use names"
            hint = suggest(str(entry), names)
            raise ValueError(f"{key}: {entry!r} is not among the {num_classes} classes{hint}; {known}.")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{key}: {list(classes)} holds a class twice.")
    return tuple(numbers)


def _by_name(given: Mapping[str, float], names: list[str], *, key: str, what: str) -> tuple[float, ...]:
    unknown = [name for name in given if name not in names]
    missing = [name for name in names if name not in given]
    if not unknown and not missing:
        return tuple(given[name] for name in names)
    problems = [f"unknown class {name!r}{suggest(name, names)}" for name in unknown]
    if missing:
        problems.append(f"no {what} for {', '.join(map(repr, missing))}")
    raise ValueError(f"{key}: {'; '.join(problems)}. The classes are {', '.join(names)}.")
