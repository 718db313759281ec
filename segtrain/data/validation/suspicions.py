"""Signs that masks do not mean what the configuration says: numbering from 1, 0/255, stretched or invented values."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from segtrain.config.data import DataConfig
from segtrain.errors import some

MOSTLY_IGNORED: Final = 0.9
INVENTED_VALUES: Final = 16  # more unknown values than this, and than four for each class, are no labels
MAX_SHOWN: Final = 8


def find_suspicions(
    data: DataConfig, pixels: Sequence[int], ignored: int, *, in_bad_masks: Collection[int], unknown: Sequence[int]
) -> list[str]:
    """Say what looks like a mistake, with the evidence and the lines that would mend it; nothing is changed.

    Args:
        data: what the masks are said to mean.
        pixels: of each class in the good masks, [C].
        ignored: ignored pixels in the good masks.
        in_bad_masks: all raw values of the masks that hold unknown ones.
        unknown: those of them that are without a meaning, in their order.
    """
    if data.multi_label or not data.holds_numbers:
        return []
    num_classes = len(data.class_names)
    found = []
    if len(unknown) > max(INVENTED_VALUES, 4 * num_classes):
        found.append(
            f"{len(unknown)} different unknown values: labels are few. Masks that were resized with interpolation or "
            "saved as JPEG hold values between those of the classes: resize with nearest neighbour, save as PNG"
        )
    elif data.raw_labels() is None:
        held = {number for number, count in enumerate(pixels) if count} | set(in_bad_masks)
        if ignored:
            held.add(data.ignore_index)
        found += _numbering(data, sorted(held), unknown)
    total = sum(pixels) + ignored
    if total and ignored / total > MOSTLY_IGNORED:
        found.append(f"{100 * ignored / total:.1f} % of all pixels are ignored: is an ignored value a class?")
    return found


def _numbering(data: DataConfig, held: Sequence[int], unknown: Sequence[int]) -> list[str]:
    """Signs in the values themselves, of masks that are said to hold class numbers."""
    names, num_classes = data.class_names, len(data.class_names)
    shown = some(held, limit=MAX_SHOWN)
    if num_classes == 2 and 255 in held and set(held) <= {0, 255}:
        return [
            f"the masks hold nothing but {shown}: if 255 is {names[1]}, write data.label_map: "
            f"{{0: {names[0]}, 255: {names[1]}}}"
        ]
    if num_classes in unknown and 0 not in held:
        return [
            f"0 never occurs, and {num_classes} does, which is no class ({shown}): masks numbered from 1? Then write "
            f"data.label_map: {{{_shifted(names)}}}"
        ]
    if list(unknown) == [num_classes]:
        return [
            f"the masks hold {num_classes} besides 0 to {num_classes - 1}: one value more than classes. If 0 is not "
            f"{names[0]} but unlabelled, write data.label_map: {{0: ignore, {_shifted(names)}}}"
        ]
    levels = [value for value in held if value != data.ignore_index or value in unknown]
    step = levels[1] if len(levels) > 2 and levels[0] == 0 else 1
    if unknown and step > 1 and len(levels) <= num_classes and all(value % step == 0 for value in levels):
        meant = ", ".join(f"{value}: {names[value // step]}" for value in levels if value // step < num_classes)
        return [f"the values are steps of {step} ({shown}): numbers stretched for the eye? Then write {{{meant}}}"]
    absent = [number for number in range(num_classes) if number not in held]
    if len(absent) == 1 and len(unknown) == 1:
        return [f"{names[absent[0]]} never occurs, and {unknown[0]} has no meaning: is {unknown[0]} this class?"]
    if absent == [0] and not unknown and num_classes > 2:
        return [f"class 0 ({names[0]}) never occurs, and all others do: are the classes listed in the masks' order?"]
    return []


def _shifted(names: Sequence[str]) -> str:
    return ", ".join(f"{number}: {name}" for number, name in enumerate(names, start=1))
