"""The official labels of Cityscapes: names, ids in *_labelIds.png, and train ids of those that are evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from segtrain.errors import some

# name: id in the masks. The license plate (-1) is never drawn.
IDS = {
    "unlabeled": 0,
    "ego vehicle": 1,
    "rectification border": 2,
    "out of roi": 3,
    "static": 4,
    "dynamic": 5,
    "ground": 6,
    "road": 7,
    "sidewalk": 8,
    "parking": 9,
    "rail track": 10,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "guard rail": 14,
    "bridge": 15,
    "tunnel": 16,
    "pole": 17,
    "polegroup": 18,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "caravan": 29,
    "trailer": 30,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
# The 19 classes that count, in the order of their train ids 0 to 18.
EVALUATED = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
IGNORED_TRAIN_ID = 255


def raw_labels(classes: Sequence[str], name_map: Mapping[str, int | str], *, labels: str) -> dict[int, int | str]:
    """What the values of the masks mean: raw value -> class name, class number or 'ignore'.

    `name_map` comes first, then classes by their names; names that the official evaluation leaves out are ignored.

    Raises:
        ValueError: evaluated names that are neither a class nor in name_map, or names that Cityscapes does not have.
    """
    names = IDS if labels == "ids" else {name: number for number, name in enumerate(EVALUATED)}
    unknown = [name for name in name_map if name not in names]
    if unknown:
        raise ValueError(f"name_map: Cityscapes ({labels}) has no {some(unknown, limit=5)}; names: {', '.join(names)}")
    lost = [name for name in EVALUATED if name not in classes and name not in name_map]
    if lost:
        raise ValueError(
            f"name_map: of the labels of Cityscapes, {some(lost, limit=19)} are no class: say what each of them is, "
            "such as {wall: ignore}"
        )
    found: dict[int, int | str] = {} if labels == "ids" else {IGNORED_TRAIN_ID: "ignore"}
    for name, number in names.items():
        found[number] = name_map.get(name, name if name in classes else "ignore")
    return found
