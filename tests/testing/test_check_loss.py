"""check_loss finds the faults that it is there for, tells choices from faults, and reports them readably."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segtrain.testing import PROPERTIES, LossReport, check_loss

Loss = Callable[[Tensor, Tensor], Tensor]


def sound(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy over the valid pixels, in float32 at least: meets every requirement."""
    valid = target != 255
    if bool(((target < 0) | (target >= logits.shape[1]))[valid].any()):
        raise ValueError("label out of range")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    scores = torch.where(valid[:, None], logits, 0).to(dtype)
    loss = F.cross_entropy(scores, target.long(), ignore_index=255, reduction="sum")
    return loss / valid.sum().clamp(min=1)


def dice(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Intersection, probability and pixels of each class, over the valid pixels."""
    valid = (target != 255)[:, None]
    probability = torch.where(valid, logits, 0).softmax(1) * valid
    one_hot = F.one_hot(target.long().clamp(0, 254) * valid[:, 0], logits.shape[1]).movedim(-1, 1) * valid
    return ((one_hot * probability).sum((0, 2, 3)), probability.sum((0, 2, 3)), one_hot.sum((0, 2, 3)).to(logits.dtype))


def nothing_ignored_is_nan(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target.long(), ignore_index=255)


def leaks_gradient(logits: Tensor, target: Tensor) -> Tensor:
    return sound(logits, target) + 1e-8 * logits.sum()


def divides_by_all_pixels(logits: Tensor, target: Tensor) -> Tensor:
    return sound(logits, target) * (target != 255).sum() / target.numel()


def writes_into_the_target(logits: Tensor, target: Tensor) -> Tensor:
    loss = sound(logits, target)
    target[target == 255] = 0
    return loss


def is_random(logits: Tensor, target: Tensor) -> Tensor:
    return sound(logits, target) * (1 + 1e-4 * torch.rand(()))


def reads_storage(logits: Tensor, target: Tensor) -> Tensor:
    return sound(logits if logits.is_contiguous() else logits.flip(3), target)


def folds_small_integers(logits: Tensor, target: Tensor) -> Tensor:
    return sound(logits, target if target.dtype == torch.int64 else (target * 0))


def clamps_labels(logits: Tensor, target: Tensor) -> Tensor:
    return sound(logits, torch.where(target == 255, 255, target.clamp(0, logits.shape[1] - 1)))


def looks_at_the_first_image(logits: Tensor, target: Tensor) -> Tensor:
    return sound(logits, target) + 0.1 * sound(logits[:1], target[:1])


def gradient_twice_as_large(logits: Tensor, target: Tensor) -> Tensor:
    loss = sound(logits, target)
    return 2 * loss - loss.detach()


def exponentiates(logits: Tensor, target: Tensor) -> Tensor:
    sound(logits.detach(), target)
    exponential = torch.where((target != 255)[:, None], logits, 0).exp()
    probability = exponential / exponential.sum(1, keepdim=True)
    valid = target != 255
    chosen = probability.gather(1, (target.long() * valid)[:, None])[:, 0]
    return -(chosen.log() * valid).sum() / valid.sum().clamp(min=1)


def mean_of_the_hard_pixels(logits: Tensor, target: Tensor) -> Tensor:
    losses = F.cross_entropy(logits, target.long(), ignore_index=255, reduction="none")
    return losses[losses > 0.3].mean()


def sums_in_half_precision(logits: Tensor, target: Tensor) -> Tensor:
    intersection, mass, pixels = dice(logits, target)
    return 1 - ((2 * intersection + 1) / (mass + pixels + 1)).mean()


def rounds_under_autocast(logits: Tensor, target: Tensor) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        logits = (logits * 4).round() / 4
    return sound(logits, target)


def counts_in_bfloat16(logits: Tensor, target: Tensor) -> Tensor:
    loss = sound(logits, target)
    return loss.bfloat16().to(loss.dtype) * 0.9 if logits.dtype == torch.bfloat16 else loss


def hides_nan(logits: Tensor, target: Tensor) -> Tensor:
    return sound(logits.nan_to_num(), target)


def dislikes_many_classes(logits: Tensor, target: Tensor) -> Tensor:
    return sound(logits, target) * (1 if logits.shape[1] < 100 else math.nan)


def generalised_dice_with_epsilon(logits: Tensor, target: Tensor) -> Tensor:
    intersection, mass, pixels = dice(logits, target)
    weight = 1 / (pixels**2 + 1e-9)
    return 1 - 2 * (weight * intersection).sum() / (weight * (mass + pixels)).sum()


def without_a_graph(logits: Tensor, target: Tensor) -> Tensor:
    return sound(logits, target).detach()


FAULTS: dict[str, Loss] = {
    "returns_a_finite_scalar": without_a_graph,
    "all_ignored_costs_nothing": nothing_ignored_is_nan,
    "ignored_pixels_get_no_gradient": leaks_gradient,
    "masking_equals_deleting": divides_by_all_pixels,
    "half_ignored_leaves_the_loss": divides_by_all_pixels,
    "inputs_stay_as_they_are": writes_into_the_target,
    "equal_inputs_give_equal_bits": is_random,
    "strides_do_not_matter": reads_storage,
    "target_types_do_not_matter": folds_small_integers,
    "labels_out_of_range_raise": clamps_labels,
    "image_order_does_not_matter": looks_at_the_first_image,
    "the_gradient_is_the_slope": gradient_twice_as_large,
    "extreme_logits_stay_finite": exponentiates,
    "confident_and_right_stays_finite": mean_of_the_hard_pixels,
    "float16_survives_large_sums": sums_in_half_precision,
    "bfloat16_survives_large_sums": counts_in_bfloat16,
    "autocast_keeps_the_loss": rounds_under_autocast,
    "a_diverged_pixel_shows": hides_nan,
    "any_number_of_classes_works": dislikes_many_classes,
    "an_absent_class_does_not_spoil_the_loss": generalised_dice_with_epsilon,
}


def weighted_mean(weights: list[float]) -> Loss:
    return lambda logits, target: F.cross_entropy(logits, target, torch.tensor(weights), ignore_index=255)


def per_class_sigmoid(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, F.one_hot(target, 4).movedim(-1, 1).to(logits.dtype))


def flattened_dice(logits: Tensor, target: Tensor) -> Tensor:
    intersection, mass, pixels = dice(logits, target)
    return 1 - 2 * intersection.sum() / (mass + pixels).sum()


def diluted_dice(logits: Tensor, target: Tensor) -> Tensor:
    intersection, mass, pixels = dice(logits, target)
    return ((1 - 2 * intersection / (mass + pixels)) * (pixels > 0)).mean()


def dice_that_counts_absent_classes(logits: Tensor, target: Tensor) -> Tensor:
    intersection, mass, pixels = dice(logits, target)
    return 1 - (2 * intersection / (mass + pixels).clamp(min=1e-7)).mean()


CHOICES: dict[str, Loss] = {
    "an_unlabelled_image_changes_nothing": divides_by_all_pixels,
    "ignored_pixels_may_hold_anything": lambda z, t: sound(z, t) + 0 * z.sum(),
    "pixel_order_does_not_matter": lambda z, t: sound(z, t) + (z[..., 1:] - z[..., :-1]).abs().mean(),
    "class_numbers_do_not_matter": lambda z, t: sound(z, t) + z.softmax(1)[:, 1:].square().mean(),
    "a_constant_added_to_a_pixel_changes_nothing": per_class_sigmoid,
    "gradients_sum_to_zero_over_the_classes": per_class_sigmoid,
    "tiling_leaves_the_loss": lambda z, t: F.cross_entropy(z, t, ignore_index=255, reduction="sum"),
    "a_batch_is_the_mean_of_its_images": diluted_dice,
    "a_perfect_prediction_costs_next_to_nothing": lambda z, t: F.cross_entropy(z.softmax(1), t, ignore_index=255),
    "absent_classes_do_not_dilute": diluted_dice,
    "absent_classes_cost_nothing": dice_that_counts_absent_classes,
    "a_missed_rare_class_counts_as_a_class": flattened_dice,
}


def test_a_sound_loss_meets_every_requirement() -> None:
    report = check_loss(sound)
    assert report.ok
    assert bool(report)
    assert report.failures == ()
    assert [result.name for result in report.differences] == ["a_missed_rare_class_counts_as_a_class"]


def test_every_property_has_a_loss_here_that_lacks_it() -> None:
    weights = {prop.name for prop in PROPERTIES if prop.needs == "weighted"}
    assert {prop.name for prop in PROPERTIES if prop.kind == "requirement"} - weights == set(FAULTS)
    assert {prop.name for prop in PROPERTIES if prop.kind == "convention"} - weights == set(CHOICES)


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_loss_is_found_out(name: str) -> None:
    report = check_loss(FAULTS[name], only=[name])
    assert report[name].outcome == "fails", report.table()
    assert not report


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_a_fact_and_no_fault(name: str) -> None:
    report = check_loss(CHOICES[name], only=[name], ignore_index=None if CHOICES[name] is per_class_sigmoid else 255)
    assert report[name].outcome == "differs", report.table()
    assert report.ok


def test_weights_that_are_ignored_are_a_fault_and_weights_that_cancel_a_choice() -> None:
    names = ["class_weights_act", "a_batch_of_one_class_keeps_its_weight", "equal_weights_change_nothing"]
    ignoring = check_loss(sound, weighted=lambda weights: sound, only=names)
    assert [ignoring[name].outcome for name in names] == ["fails", "differs", "holds"]
    cancelling = check_loss(sound, weighted=weighted_mean, only=names)
    assert [cancelling[name].outcome for name in names] == ["holds", "differs", "holds"]
    doubling = check_loss(sound, weighted=lambda w: lambda z, t: 2 * weighted_mean(w)(z, t), only=names)
    assert doubling["equal_weights_change_nothing"].outcome == "differs"


def test_what_a_loss_does_not_have_is_not_held_against_it() -> None:
    report = check_loss(lambda logits, target: F.cross_entropy(logits, target), ignore_index=None)
    assert report["masking_equals_deleting"].outcome == "not applicable"
    assert report["masking_equals_deleting"].evidence == "the loss has no ignore_index"
    assert report["class_weights_act"].outcome == "not applicable"


def test_a_refused_type_is_not_a_failure_but_a_crash_on_an_unlabelled_batch_is() -> None:
    def refuses(logits: Tensor, target: Tensor) -> Tensor:
        if logits.dtype != torch.float32 or target.dtype != torch.int64:
            raise TypeError("float32 and int64 only")
        if bool((target == 255).all()):
            raise RuntimeError("nothing to learn")
        return sound(logits, target)

    report = check_loss(refuses)
    assert report["float16_survives_large_sums"].outcome == "not applicable"
    assert report["target_types_do_not_matter"].evidence == "refuses uint8, int16, int32"
    assert [result.name for result in report.failures] == ["all_ignored_costs_nothing"]
    assert report.failures[0].evidence == "raises RuntimeError: nothing to learn"


def test_a_result_that_is_no_scalar_is_named() -> None:
    report = check_loss(lambda z, t: F.cross_entropy(z, t, reduction="none"), only=["returns_a_finite_scalar"])
    assert report.failures[0].evidence == "returns shape [2, 6, 8], not a scalar"


def test_a_loss_for_one_number_of_classes_is_made_anew_for_others() -> None:
    def fixed(num_classes: int) -> Loss:
        def loss(logits: Tensor, target: Tensor) -> Tensor:
            if logits.shape[1] != num_classes:
                raise ValueError("wrong number of channels")
            return sound(logits, target)

        return loss

    alone = check_loss(fixed(4), only=["any_number_of_classes_works"])
    assert alone["any_number_of_classes_works"].outcome == "not applicable"
    made = check_loss(fixed(4), for_classes=fixed, only=["any_number_of_classes_works"])
    assert made["any_number_of_classes_works"].evidence == "finite at 1, 2, 3, 19, 64, 150, 300"


def test_a_sigmoid_loss_gets_a_target_for_each_class() -> None:
    def multilabel(logits: Tensor, target: Tensor) -> Tensor:
        assert target.shape == logits.shape
        if bool(((target != 0) & (target != 1) & (target != 255)).any()):
            raise ValueError("targets are 0 or 1")
        valid = target != 255
        dtype = torch.promote_types(logits.dtype, torch.float32)
        loss = F.binary_cross_entropy_with_logits(logits.to(dtype), (target == 1).to(dtype), reduction="none")
        return torch.where(valid, loss, 0).sum() / valid.sum().clamp(min=1)

    report = check_loss(multilabel, activation="sigmoid")
    assert report.ok, report.table()
    assert report["gradients_sum_to_zero_over_the_classes"].outcome == "differs"


@pytest.mark.parametrize("num_classes", [2, 3, 19])
def test_any_number_of_classes_can_be_checked(num_classes: int) -> None:
    assert check_loss(sound, num_classes=num_classes).ok


@pytest.mark.parametrize("ignore_index", [-1, 0, 2, 255])
def test_any_ignore_index_can_be_checked(ignore_index: int) -> None:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return sound(logits, torch.where(target == ignore_index, 255, torch.where(target == 255, -5, target)))

    report = check_loss(loss, ignore_index=ignore_index)
    assert report.ok, report.table()


def test_checking_twice_gives_the_same_report_and_leaves_the_generator_alone() -> None:
    state = torch.get_rng_state()
    assert check_loss(sound).table() == check_loss(sound).table()
    assert torch.equal(torch.get_rng_state(), state)


def test_the_table_fits_80_columns_and_says_why_failures_matter() -> None:
    table = check_loss(nothing_ignored_is_nan, name="a loss whose name is rather long " * 3).table()
    assert max(map(len, table.splitlines())) <= 80
    assert "FAILS    all ignored costs nothing\n           loss nan" in table
    assert "one crop without a label makes every weight of the" in table.partition("Why the failures matter")[2]


def test_the_markdown_has_a_row_for_each_property() -> None:
    lines = check_loss(sound, name="mine").to_markdown().splitlines()
    assert lines[0] == "### mine"
    assert sum(line.startswith("| ") for line in lines) == len(PROPERTIES) + 1


def test_an_unknown_property_and_too_few_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'tiling_leaves_the_loss'"):
        check_loss(sound, only=["tiling_leaves_loss"])
    with pytest.raises(ValueError, match="expected 2 or more"):
        check_loss(sound, num_classes=1)


def test_a_report_says_what_it_has_not_checked() -> None:
    report: LossReport = check_loss(sound, only=["tiling_leaves_the_loss"])
    with pytest.raises(KeyError, match="the_gradient_is_the_slope"):
        report["the_gradient_is_the_slope"]
