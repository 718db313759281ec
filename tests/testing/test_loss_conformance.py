"""Our losses have every property that a loss should have, and share the conventions that they say they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from segtrain.losses import build_loss
from segtrain.testing import check_loss

Loss = Callable[[Tensor, Tensor], Tensor]
Section = dict[str, Any]
RARE = "a_missed_rare_class_counts_as_a_class"
BATCH = "a_batch_is_the_mean_of_its_images"
DILUTE = "absent_classes_do_not_dilute"
ABSENT = "absent_classes_cost_nothing"
TILES = "tiling_leaves_the_loss"
NUMBERS = "class_numbers_do_not_matter"
ONE_CLASS = "a_batch_of_one_class_keeps_its_weight"
EQUAL = "equal_weights_change_nothing"
FLOOR = "a_perfect_prediction_costs_next_to_nothing"
SHIFT = "a_constant_added_to_a_pixel_changes_nothing"
SUM = "gradients_sum_to_zero_over_the_classes"
WITHOUT_WEIGHTS = ("generalized_dice", "lovasz", "boundary")
PIXEL_TERMS = ("cross_entropy", "focal", "balanced_cross_entropy")

CE, FOCAL, DICE, TVERSKY, LOVASZ = ({"name": name} for name in ("cross_entropy", "focal", "dice", "tversky", "lovasz"))
# Each section, and the conventions that it does not share.
CONFIGURATIONS: dict[str, tuple[Section, set[str]]] = {
    "cross_entropy": ({"terms": [CE]}, {RARE}),
    "label smoothing": ({"terms": [{**CE, "label_smoothing": 0.1}]}, {FLOOR, ABSENT}),
    "focal": ({"terms": [FOCAL]}, {RARE}),
    "focal, a small gamma": ({"terms": [{**FOCAL, "gamma": 0.5}]}, {RARE}),
    "weighted mean": ({"terms": [CE], "reduction": "weighted"}, {RARE, ONE_CLASS}),
    "dice": ({"terms": [DICE]}, {BATCH, ONE_CLASS}),
    "dice, squared": ({"terms": [{**DICE, "squared": True}]}, {BATCH, ONE_CLASS}),
    "dice, per image": ({"terms": [{**DICE, "per": "image"}]}, {ONE_CLASS}),
    "dice, smooth": ({"terms": [{**DICE, "smooth": 1.0}]}, {BATCH, TILES, ONE_CLASS}),
    "dice, absent counted": ({"terms": [{**DICE, "absent_classes": "count"}]}, {BATCH, ABSENT, ONE_CLASS}),
    "jaccard": ({"terms": [{"name": "jaccard"}]}, {BATCH, ONE_CLASS}),
    "tversky": ({"terms": [TVERSKY]}, {BATCH, ONE_CLASS}),
    "tversky, per image": ({"terms": [{**TVERSKY, "per": "image"}]}, {ONE_CLASS}),
    "focal_tversky": ({"terms": [{"name": "focal_tversky"}]}, {BATCH, ONE_CLASS}),
    "generalized_dice": ({"terms": [{"name": "generalized_dice"}]}, {BATCH}),
    "lovasz": ({"terms": [LOVASZ]}, {BATCH}),
    "lovasz, per image": ({"terms": [{**LOVASZ, "per": "image"}]}, set()),
    "lovasz, bins": ({"terms": [{**LOVASZ, "bins": 64}]}, {BATCH}),
    "ohem, threshold": ({"terms": [CE], "ohem": {"threshold": 0.7}}, {BATCH}),
    "ohem, top_k": ({"terms": [FOCAL], "ohem": {"top_k": 0.25}}, {BATCH, RARE, TILES}),  # k is rounded
    "ohem, per class": ({"terms": [CE], "ohem": {"top_k": 0.5, "per_class": True}}, {BATCH, RARE}),
    "prior": ({"terms": [CE], "prior": {"tau": 1.0}}, {NUMBERS, RARE, DILUTE}),
    "margin": ({"terms": [CE], "margin": {"scale": 1.0}}, {NUMBERS, RARE}),
    "all": ({"terms": [CE, FOCAL, {**DICE, "per": "image"}], "ohem": {"threshold": 0.7}}, {BATCH}),
}
SIGMOID: dict[str, tuple[Section, set[str]]] = {
    "cross_entropy": ({"terms": [CE]}, {RARE}),
    "focal": ({"terms": [FOCAL]}, {RARE}),
    "balanced_cross_entropy": ({"terms": [{"name": "balanced_cross_entropy"}]}, {BATCH, RARE, DILUTE, ONE_CLASS}),
    "dice": ({"terms": [DICE]}, {BATCH, ONE_CLASS}),
    "focal and dice": ({"terms": [FOCAL, DICE], "ohem": {"top_k": 0.5}}, {BATCH}),
}


def build(section: Section, num_classes: int, **options: Any) -> Loss:
    """The loss of a section on data in which each class is half as frequent as the one before it."""
    counts = 10**6 // 2 ** np.minimum(np.arange(num_classes), 16)
    frequencies = SimpleNamespace(pixels=counts, images=np.full(num_classes, 100), image_pixels=2 * counts)
    return build_loss(section, num_classes=num_classes, frequencies=frequencies, **options)


def maker(section: Section) -> Callable[[int], Loss]:
    """The loss of a section for any number of classes; a weighted mean needs weights, here equal ones."""

    def make(num_classes: int) -> Loss:
        given = dict(section)
        if section.get("reduction") == "weighted":
            given["class_weights"] = {"scheme": "manual", "weights": [1.0] * num_classes}
        return build(given, num_classes)

    return make


def weighter(section: Section) -> Callable[[Sequence[float]], Loss] | None:
    """The loss of a section with class weights, which act on its pixel terms or else on its region terms."""
    of_pixels = any(term["name"] in PIXEL_TERMS for term in section["terms"])
    if not of_pixels and any(term["name"] in WITHOUT_WEIGHTS for term in section["terms"]):
        return None
    terms = section["terms"] if of_pixels else [{**term, "class_weights": True} for term in section["terms"]]

    def make(weights: Sequence[float]) -> Loss:
        manual = {"scheme": "manual", "weights": list(weights)}
        return build({**section, "terms": terms, "class_weights": manual}, len(weights))

    return make


def check(name: str, section: Section, differences: set[str], activation: Any) -> None:
    make = maker(section)
    report = check_loss(
        make(4), for_classes=make, weighted=weighter(section), activation=activation, name=f"{activation} {name}"
    )
    assert report.ok, report.table()
    assert {result.name for result in report.differences} == differences, report.table()
    # nothing is refused either
    unchecked = {r.name for r in report.results if r.outcome == "not applicable" and r.rule.needs is None}
    assert not unchecked, report.table()
    assert report["target_types_do_not_matter"].evidence == "uint8, int16, int32 equal int64"


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_meets_every_requirement_and_its_own_conventions(name: str) -> None:
    check(name, *CONFIGURATIONS[name], "softmax")


@pytest.mark.parametrize("name", SIGMOID)
def test_a_sigmoid_configuration_meets_every_requirement_and_its_own_conventions(name: str) -> None:
    section, differences = SIGMOID[name]
    check(name, {**section, "activation": "sigmoid"}, differences | {SHIFT, SUM}, "sigmoid")


@pytest.mark.parametrize("num_classes", [2, 3, 19])
@pytest.mark.parametrize("ignore_index", [-1, 0, 255])
def test_the_requirements_hold_for_any_ignored_label(num_classes: int, ignore_index: int) -> None:
    def make(classes: int) -> Loss:
        section = {"terms": [CE, FOCAL, DICE], "ohem": {"top_k": 0.5}}
        return build_loss(section, num_classes=classes, ignore_index=ignore_index)

    report = check_loss(make(num_classes), num_classes=num_classes, ignore_index=ignore_index, for_classes=make)
    assert report.ok, report.table()
