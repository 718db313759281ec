"""The list of properties: what each says, why users are hurt where it fails, and whether it is a matter of choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from segtrain.testing import classes, ignored, inputs, numerics, symmetry
from segtrain.testing.probe import Finding, Probe

Kind = Literal["requirement", "convention"]
Needs = Literal["ignore_index", "weighted"]


@dataclass(frozen=True)
class Property:
    """One property of a loss.

    A `requirement` is what any loss should meet: where it fails, numbers are wrong or training stops. A `convention` is
    a choice that sound losses make differently: whether it holds is a fact to know, and not a fault.
    """

    check: Callable[[Probe], Finding]
    kind: Kind
    why: str
    needs: Needs | None = None
    raising_fails: bool = False  # an exception is a failure here; elsewhere it is an honest refusal

    @property
    def name(self) -> str:
        """The name, an identifier."""
        return self.check.__name__


def _requirement(
    check: Callable[[Probe], Finding], why: str, *, needs: Needs | None = None, raising_fails: bool = False
) -> Property:
    return Property(check, "requirement", why, needs, raising_fails)


def _convention(check: Callable[[Probe], Finding], why: str, *, needs: Needs | None = None) -> Property:
    return Property(check, "convention", why, needs)


PROPERTIES: tuple[Property, ...] = (
    _requirement(
        numerics.returns_a_finite_scalar, "a loss that cannot do this cannot train a model", raising_fails=True
    ),
    _requirement(
        ignored.all_ignored_costs_nothing,
        "one crop without a label makes every weight of the model NaN, or stops the run",
        needs="ignore_index",
        raising_fails=True,
    ),
    _requirement(
        ignored.ignored_pixels_get_no_gradient,
        "the model learns something at pixels that nobody labelled",
        needs="ignore_index",
    ),
    _requirement(
        ignored.masking_equals_deleting,
        "ignored pixels leak into a sum or a denominator, so the loss depends on how much was left unlabelled",
        needs="ignore_index",
    ),
    _requirement(
        ignored.half_ignored_leaves_the_loss,
        "sparsely labelled images teach less than their labels say: at 50 % ignored the gradient is halved",
        needs="ignore_index",
    ),
    _convention(
        ignored.an_unlabelled_image_changes_nothing,
        "an image without labels dilutes the loss of the images beside it",
        needs="ignore_index",
    ),
    _convention(
        ignored.ignored_pixels_may_hold_anything,
        "padding that overflows in half precision spoils a batch though its pixels are ignored",
        needs="ignore_index",
    ),
    _requirement(
        inputs.inputs_stay_as_they_are,
        "the next loss or metric sees another target: ignored pixels become class 0",
        raising_fails=True,
    ),
    _requirement(inputs.equal_inputs_give_equal_bits, "a run cannot be repeated, so a bug cannot be found"),
    _requirement(
        inputs.strides_do_not_matter, "switching to channels_last for speed changes the training", raising_fails=True
    ),
    _requirement(
        inputs.target_types_do_not_matter, "targets kept small (uint8 is an eighth of int64) train another model"
    ),
    _requirement(
        inputs.labels_out_of_range_raise, "a wrong label map trains without a word, and some classes never learn"
    ),
    _requirement(symmetry.image_order_does_not_matter, "shuffling the data changes the loss"),
    _convention(symmetry.pixel_order_does_not_matter, "the loss looks at shapes or borders, and not at pixels alone"),
    _convention(
        symmetry.class_numbers_do_not_matter, "one class has a special rôle, such as a background that is left out"
    ),
    _convention(
        symmetry.a_constant_added_to_a_pixel_changes_nothing,
        "the loss is not one of the softmax, so its optimum need not be where the softmax of the model is right",
    ),
    _convention(
        symmetry.gradients_sum_to_zero_over_the_classes, "the logits drift together, which a softmax cannot see"
    ),
    _convention(
        symmetry.tiling_leaves_the_loss, "the loss scales with the resolution or crop, and so does the learning rate"
    ),
    _convention(
        symmetry.a_batch_is_the_mean_of_its_images,
        "averages over ranks or micro-batches are not the loss of the whole batch unless its sums are shared",
    ),
    _requirement(
        numerics.the_gradient_is_the_slope, "the optimizer descends something else than the loss that is shown"
    ),
    _requirement(
        numerics.extreme_logits_stay_finite, "one bad step of the model ends the run with NaN", raising_fails=True
    ),
    _requirement(
        numerics.confident_and_right_stays_finite,
        "training ends with NaN when the model becomes good (mean of no hard pixel, log of 0, 0/0)",
        raising_fails=True,
    ),
    _requirement(
        numerics.float16_survives_large_sums, "a sum over the pixels overflows at 65,504: NaN at 1024 x 1024 pixels"
    ),
    _requirement(numerics.bfloat16_survives_large_sums, "sums in bfloat16 keep three digits and stop counting at 256"),
    _requirement(numerics.autocast_keeps_the_loss, "mixed precision of the model silently lowers that of the loss"),
    _requirement(numerics.a_diverged_pixel_shows, "a diverged model goes on training, and nobody notices"),
    _requirement(numerics.any_number_of_classes_works, "the loss breaks on the data set after this one"),
    _convention(
        classes.a_perfect_prediction_costs_next_to_nothing,
        "the loss has a floor: label smoothing and margins have one by design, a softmax taken twice by mistake",
    ),
    _convention(
        classes.absent_classes_do_not_dilute,
        "absent classes count as solved, so with many classes an untrained model seems good and learns slowly",
    ),
    _requirement(
        classes.an_absent_class_does_not_spoil_the_loss,
        "one absent class outweighs all others, so a nearly perfect prediction looks hopeless",
    ),
    _convention(
        classes.absent_classes_cost_nothing,
        "a class that is neither there nor predicted costs as much as one that is missed, whatever the model does",
    ),
    _convention(
        classes.a_missed_rare_class_counts_as_a_class,
        "rare classes weigh what their pixels weigh: never predicting them is nearly free",
    ),
    _convention(
        classes.equal_weights_change_nothing,
        "switching weights on rescales the whole loss, and with it the learning rate",
        needs="weighted",
    ),
    _requirement(classes.class_weights_act, "weights that were asked for are ignored without a word", needs="weighted"),
    _convention(
        classes.a_batch_of_one_class_keeps_its_weight,
        "the weight cancels between numerator and denominator wherever a batch holds a single class",
        needs="weighted",
    ),
)
