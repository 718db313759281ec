"""The loss module: combinations, labels, the auto rule, the printed table, and what it refuses."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from segtrain.config.loss import LossConfig
from segtrain.errors import ConfigError, DataError
from segtrain.losses import build_loss, resolve_auto

MakeBatch = Callable[..., tuple[Tensor, Tensor]]
WEIGHTS = {"scheme": "manual", "weights": [1.0, 2.0, 3.0, 4.0]}


def section(*terms: dict[str, Any] | str, **options: Any) -> dict[str, Any]:
    return {"terms": [{"name": term} if isinstance(term, str) else term for term in terms], **options}


def test_the_total_is_the_weighted_sum_of_the_terms(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    parts = [
        {"name": "cross_entropy", "weight": 0.5},
        {"name": "focal", "weight": 2.0},
        {"name": "dice", "weight": 0.0},
    ]
    values = build_loss(section(*parts), num_classes=4).terms(logits, target)
    assert list(values) == ["cross_entropy", "focal", "dice", "total"]
    torch.testing.assert_close(values["total"], 0.5 * values["cross_entropy"] + 2 * values["focal"])
    assert torch.equal(build_loss(section(*parts), num_classes=4)(logits, target), values["total"])


def test_combined_terms_are_those_of_losses_built_alone(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    parts = [
        {"name": "cross_entropy"},
        {"name": "focal", "gamma": 0.5},
        {"name": "focal", "gamma": 3.0},
        {"name": "dice", "per": "image"},
        {"name": "dice", "squared": True},
    ]
    options = {"class_weights": WEIGHTS, "ohem": {"top_k": 0.5}}
    together = build_loss(section(*parts, **options), num_classes=4)
    assert together.labels == ("cross_entropy", "focal", "focal_2", "dice", "dice_2")
    assert together.num_reads == 2  # one for each γ
    values = together.terms(logits, target)
    for label, part in zip(together.labels, parts, strict=True):
        alone = {} if part["name"] == "dice" else options
        torch.testing.assert_close(values[label], build_loss(section(part, **alone), num_classes=4)(logits, target))


@pytest.mark.parametrize("broken", ["all", "one pixel", "the logit of one label"])
def test_diverged_logits_make_every_term_and_the_total_nan(make_batch: MakeBatch, broken: str) -> None:
    logits, target = make_batch(ignored=0)
    logits = logits.detach().clone()
    if broken == "all":
        logits[:] = torch.nan
    elif broken == "one pixel":
        logits[0, :, 2, 3] = torch.nan
    else:
        logits[0, target[0, 2, 3], 2, 3] = torch.nan
    dice = [{"name": "dice", "per": per, "squared": squared} for per in ("batch", "image") for squared in (False, True)]
    values = build_loss(section("cross_entropy", "focal", *dice, class_weights=WEIGHTS), num_classes=4).terms(
        logits, target
    )
    assert len(values) == 7
    assert all(value.isnan() for value in values.values()), values


def test_terms_of_one_name_keep_distinct_keys() -> None:
    parts = [{"name": "dice"}, {"name": "dice", "label": "dice_2"}, {"name": "dice"}, {"name": "dice", "label": "soft"}]
    assert build_loss(section(*parts), num_classes=2).labels == ("dice", "dice_2", "dice_3", "soft")


def test_a_validated_section_and_a_plain_dict_build_the_same(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    plain = section("cross_entropy", "dice", class_weights=WEIGHTS)
    validated = LossConfig.model_validate(plain)
    assert torch.equal(
        build_loss(plain, num_classes=4)(logits, target), build_loss(validated, num_classes=4)(logits, target)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_loss_is_float32_at_least(make_batch: MakeBatch, dtype: torch.dtype) -> None:
    logits, target = make_batch(dtype=dtype)
    loss = build_loss(section("cross_entropy", "focal", "dice", class_weights=WEIGHTS), num_classes=4)(logits, target)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    (grad,) = torch.autograd.grad(loss, logits)
    assert grad.dtype == dtype
    assert grad.isfinite().all()


def test_the_combination_passes_gradcheck(make_batch: MakeBatch) -> None:
    logits, target = make_batch(size=(2, 3))
    loss = build_loss(section("cross_entropy", "focal", "dice", class_weights=WEIGHTS), num_classes=4)
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits)


def test_all_ignored_is_zero_for_the_whole_combination(make_batch: MakeBatch) -> None:
    logits, target = make_batch(ignored=1.1, dtype=torch.float32)
    parts = section("cross_entropy", {"name": "focal", "gamma": 0.5}, "dice", ohem={"threshold": 0.7})
    loss = build_loss(parts, num_classes=4)(logits, target)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, logits)[0].any()


def test_relabelled_classes_with_their_weights_leave_the_loss(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    order = [2, 0, 3, 1]
    moved = {"scheme": "manual", "weights": [WEIGHTS["weights"][c] for c in order]}  # type: ignore[index]
    renamed = torch.where(target == 255, 255, torch.tensor(order).argsort()[target.clamp(max=3)])
    parts = ("cross_entropy", "focal", {"name": "dice", "class_weights": True})
    before = build_loss(section(*parts, class_weights=WEIGHTS), num_classes=4)(logits, target)
    after = build_loss(section(*parts, class_weights=moved), num_classes=4)(logits[:, order], renamed)
    torch.testing.assert_close(after, before, rtol=1e-12, atol=0)


def test_auto_is_the_written_rule(frequencies: SimpleNamespace, make_batch: MakeBatch) -> None:
    resolved = resolve_auto(frequencies)
    expected = section("cross_entropy", "dice", class_weights={"scheme": "sqrt_inverse", "max_ratio": 10.0})
    assert resolved == LossConfig.model_validate(expected)
    assert resolved.model_dump() == LossConfig.model_validate(resolved.model_dump()).model_dump()
    logits, target = make_batch()
    auto = build_loss("auto", num_classes=4, frequencies=frequencies)
    assert torch.equal(
        auto(logits, target), build_loss(expected, num_classes=4, frequencies=frequencies)(logits, target)
    )
    assert auto.class_weights is not None
    assert float(auto.class_weights.max() / auto.class_weights.min()) == pytest.approx(10)


def test_auto_says_what_it_lacks(frequencies: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match="pass frequencies"):
        build_loss("auto", num_classes=4)
    with pytest.raises(ConfigError, match="expected a section with terms, or auto"):
        build_loss("automatic", num_classes=4, frequencies=frequencies)
    frequencies.pixels[:] = 0
    with pytest.raises(ConfigError, match="not one labelled pixel"):
        resolve_auto(frequencies)


@pytest.mark.parametrize("loss", ["auto", section("focal"), section("focal", class_weights=WEIGHTS)])
@pytest.mark.parametrize("num_classes", [3, 5])
def test_frequencies_of_another_number_of_classes_are_refused_whatever_the_loss(
    frequencies: SimpleNamespace, loss: dict[str, Any] | str, num_classes: int
) -> None:
    with pytest.raises(ConfigError, match=f"hold 4 classes, the loss has {num_classes}: scan the data again"):
        build_loss(loss, num_classes=num_classes, frequencies=frequencies)


def test_all_problems_of_a_section_are_reported_at_once() -> None:
    wrong = section({"name": "dise"}, {"name": "focal", "gamma": -1.0}, reduction="sum")
    with pytest.raises(ConfigError, match=r"(?s)dise.*-1\.0.*sum"):
        build_loss(wrong, num_classes=4)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (section({"name": "dcie"}), "loss.terms.0.name: unknown name 'dcie'; .*did you mean 'dice'"),
        (section({"name": "dice", "smoth": 1.0}), "loss.terms.0.smoth: unknown key; did you mean 'smooth'"),
        (section("dice", clas_weights=WEIGHTS), "loss.clas_weights: unknown key; did you mean 'class_weights'"),
        (section({"name": "dice", "weight": {"strat": 0}}), "loss.terms.0.weight.strat: .*did you mean 'start'"),
        (section("dice", ohem={"top_k": 0.5}), "loss.*: ohem acts on pixel terms, and there is none"),
    ],
)
def test_a_section_in_code_is_told_its_faults_as_one_in_a_file(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        build_loss(wrong, num_classes=4)
    assert len(str(caught.value).splitlines()) == 2  # what was wrong, and no faults that follow from it


@pytest.mark.parametrize("wrong", [None, ["dice"], 1.0])
def test_what_is_no_section_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=f"of type {type(wrong).__name__}; expected a section"):
        build_loss(wrong, num_classes=4)


def test_a_loss_has_a_class() -> None:
    with pytest.raises(ConfigError, match="num_classes is 0"):
        build_loss(section("dice"), num_classes=0)


def test_class_names_must_be_as_many_as_the_classes() -> None:
    with pytest.raises(ConfigError, match="2 names, expected num_classes = 4"):
        build_loss(section("dice"), num_classes=4, class_names=["a", "b"])


def test_teacher_logits_are_refused_and_not_ignored(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    with pytest.raises(ConfigError, match="teacher_logits"):
        build_loss(section("dice"), num_classes=4)(logits, target, teacher_logits=logits)


def test_logits_of_another_number_of_channels_are_refused(make_batch: MakeBatch) -> None:
    logits, target = make_batch(classes=3)
    with pytest.raises(ValueError, match="3 channels, expected num_classes = 4"):
        build_loss(section("dice"), num_classes=4)(logits, target)


@pytest.mark.parametrize("check", [False, True])
def test_labels_out_of_range_are_named(make_batch: MakeBatch, check: bool) -> None:
    logits, target = make_batch(ignored=0)
    target[0, 0, :2] = 200
    with pytest.raises(DataError, match=r"200 \(2 pixels\)"):
        build_loss(section("dice", check_labels=check), num_classes=4)(logits, target.to(torch.uint8))


def test_the_table_shows_terms_and_weights_within_80_columns(frequencies: SimpleNamespace) -> None:
    parts = section(
        "cross_entropy",
        {"name": "dice", "weight": 0.5, "per": "image", "class_weights": True, "label": "a label of its own " * 5},
        class_weights={"scheme": "sqrt_inverse"},
        ohem={"threshold": 0.7},
    )
    names = ["road", "car", "pole", "a class whose name goes on and on " * 4]
    text = build_loss(parts, num_classes=4, frequencies=frequencies, class_names=names).describe()
    assert max(map(len, text.splitlines())) <= 80
    assert "1 × cross_entropy" in text
    assert "threshold: 0.7" in text
    assert "sqrt_inverse" in text
    row = next(line for line in text.splitlines() if line.strip().startswith("pole"))
    assert row.split() == ["pole", "0.9000", "7.665"]
    assert len(text.splitlines()) >= 8


@pytest.mark.parametrize("harmless", [{"max_ratio": 10}, {"power": 0.4}])
def test_weights_of_hundreds_are_told_with_the_way_out(
    frequencies: SimpleNamespace, harmless: dict[str, float]
) -> None:
    """Trap: weights of 5 to 20 times have lowered the class that they were meant for."""

    def text(**options: float) -> str:
        parts = section("cross_entropy", class_weights={"scheme": "inverse", **options})
        return " ".join(build_loss(parts, num_classes=4, frequencies=frequencies).describe().split())

    assert "the highest class weight is 900 times the lowest" in text()
    assert "class_weights.max_ratio: 10 or power: 0.5" in text()
    assert "times the lowest" not in text(**harmless)


def test_the_table_of_an_unweighted_loss_has_no_class_rows() -> None:
    text = build_loss(section("focal"), num_classes=4).describe()
    assert text.splitlines() == ["1 × focal (gamma: 2)", "reduction: valid, class weights: none"]


def test_the_weights_travel_with_the_module(frequencies: SimpleNamespace) -> None:
    loss = build_loss("auto", num_classes=4, frequencies=frequencies)
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    assert list(torch.load(file, weights_only=True)) == ["class_weights"]


def test_progress_in_fractions_of_an_epoch_is_taken_and_changes_no_constant_weight(make_batch: MakeBatch) -> None:
    logits, target = make_batch()
    loss = build_loss(section("cross_entropy", "dice"), num_classes=4)
    before = loss(logits, target)
    loss.set_progress(30, 2.5)
    assert torch.equal(loss(logits, target), before)
