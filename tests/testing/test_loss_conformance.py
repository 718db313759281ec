"""Our losses have every property that a loss should have, and share the conventions that they say they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from torch import Tensor

from segtrain.losses import build_loss
from segtrain.testing import check_loss

Loss = Callable[[Tensor, Tensor], Tensor]
Section = dict[str, Any]
RARE = "a_missed_rare_class_counts_as_a_class"
BATCH = "a_batch_is_the_mean_of_its_images"
ABSENT = "absent_classes_cost_nothing"
SHARES = "tiling_leaves_the_loss"
NUMBERS = "class_numbers_do_not_matter"
ONE_CLASS = "a_batch_of_one_class_keeps_its_weight"

CE, FOCAL, DICE = {"name": "cross_entropy"}, {"name": "focal"}, {"name": "dice"}
# Each section, and the conventions that it does not share.
CONFIGURATIONS: dict[str, tuple[Section, set[str]]] = {
    "cross_entropy": ({"terms": [CE]}, {RARE}),
    "focal": ({"terms": [FOCAL]}, {RARE}),
    "focal, a small gamma": ({"terms": [{**FOCAL, "gamma": 0.5}]}, {RARE}),
    "weighted mean": ({"terms": [CE], "reduction": "weighted"}, {RARE, ONE_CLASS}),
    "dice": ({"terms": [DICE]}, {BATCH}),
    "dice, squared": ({"terms": [{**DICE, "squared": True}]}, {BATCH}),
    "dice, per image": ({"terms": [{**DICE, "per": "image"}]}, set()),
    "dice, smooth": ({"terms": [{**DICE, "smooth": 1.0}]}, {BATCH, SHARES}),
    "dice, absent counted": ({"terms": [{**DICE, "absent_classes": "count"}]}, {BATCH, ABSENT}),
    "ohem, threshold": ({"terms": [CE], "ohem": {"threshold": 0.7}}, {BATCH}),
    "ohem, top_k": ({"terms": [FOCAL], "ohem": {"top_k": 0.25}}, {BATCH, RARE, SHARES}),  # k is rounded
    "all": ({"terms": [CE, FOCAL, {**DICE, "per": "image"}], "ohem": {"threshold": 0.7}}, {BATCH}),
}


def maker(section: Section) -> Callable[[int], Loss]:
    """The loss of a section for any number of classes; a weighted mean needs weights, here equal ones."""

    def make(num_classes: int) -> Loss:
        given = dict(section)
        if section.get("reduction") == "weighted":
            given["class_weights"] = {"scheme": "manual", "weights": [1.0] * num_classes}
        return build_loss(given, num_classes=num_classes)

    return make


def weighter(section: Section) -> Callable[[Sequence[float]], Loss]:
    def make(weights: Sequence[float]) -> Loss:
        manual = {"scheme": "manual", "weights": list(weights)}
        return build_loss({**section, "class_weights": manual}, num_classes=len(weights))

    return make


def weightable(section: Section) -> bool:
    return any(term["name"] in ("cross_entropy", "focal") for term in section["terms"])


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_meets_every_requirement_and_its_own_conventions(name: str) -> None:
    section, differences = CONFIGURATIONS[name]
    make = maker(section)
    weighted = weighter(section) if weightable(section) else None
    report = check_loss(make(4), for_classes=make, weighted=weighted, name=name)
    assert report.ok, report.table()
    assert {result.name for result in report.differences} == differences, report.table()
    # nothing is refused either
    unchecked = {r.name for r in report.results if r.outcome == "not applicable" and r.rule.needs is None}
    assert not unchecked, report.table()
    assert report["target_types_do_not_matter"].evidence == "uint8, int16, int32 equal int64"


@pytest.mark.parametrize("num_classes", [2, 3, 19])
@pytest.mark.parametrize("ignore_index", [-1, 0, 255])
def test_the_requirements_hold_for_any_ignored_label(num_classes: int, ignore_index: int) -> None:
    def make(classes: int) -> Loss:
        section = {"terms": [CE, FOCAL, DICE], "ohem": {"top_k": 0.5}}
        return build_loss(section, num_classes=classes, ignore_index=ignore_index)

    report = check_loss(make(num_classes), num_classes=num_classes, ignore_index=ignore_index, for_classes=make)
    assert report.ok, report.table()
