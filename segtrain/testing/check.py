"""Runs the properties on anybody's loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence

from segtrain.errors import suggest
from segtrain.testing.probe import Activation, Finding, Loss, Probe, UnusableResult
from segtrain.testing.properties import PROPERTIES, Property
from segtrain.testing.report import LossReport, Result, kind_of_miss

NEEDS = {"ignore_index": "the loss has no ignore_index", "weighted": "no weighted form was given"}
MAX_ERROR_CHARACTERS = 100


def check_loss(
    loss: Loss,
    *,
    num_classes: int = 4,
    ignore_index: int | None = 255,
    activation: Activation = "softmax",
    for_classes: Callable[[int], Loss] | None = None,
    weighted: Callable[[Sequence[float]], Loss] | None = None,
    only: Collection[str] | None = None,
    tolerance: float = 1e-4,
    seed: int = 0,
    name: str | None = None,
) -> LossReport:
    """Check which properties a loss has, on small random batches on the CPU; takes about a second.

        report = check_loss(torch.nn.CrossEntropyLoss(ignore_index=255))
        print(report.table())
        assert report, report.failures

    Args:
        loss: called as `loss(logits, target)` with float logits `[N, C, H, W]` and an int64 target `[N, H, W]` (also
            with other types of both); returns a scalar tensor. Wrap a loss that is called in another way.
        num_classes: C that the loss is made for; at least 2, and 3 for the properties of absent classes.
        ignore_index: label of the pixels that count nowhere; None where the loss has none.
        activation: with `sigmoid`, targets are `[N, C, H, W]` in {0, 1, ignore_index}.
        for_classes: makes the same loss for another number of classes, where `loss` cannot take them.
        weighted: makes the same loss with the class weights given, for the properties of weights.
        only: names of the properties to check, of `PROPERTIES`; all by default.
        tolerance: relative difference up to which two losses are equal (float32).
        seed: of the batches.
        name: what the report calls the loss.

    Raises:
        ValueError: an unknown name in `only`, or fewer than two classes.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}, expected 2 or more: the properties compare classes")
    known = [prop.name for prop in PROPERTIES]
    for asked in only or ():
        if asked not in known:
            raise ValueError(f"unknown property {asked!r}{suggest(asked, known)}; known are {', '.join(known)}")
    probe = Probe(
        loss,
        num_classes,
        ignore_index=ignore_index,
        activation=activation,
        for_classes=for_classes,
        weighted=weighted,
        tolerance=tolerance,
        seed=seed,
    )
    chosen = [prop for prop in PROPERTIES if only is None or prop.name in only]
    label = name or str(getattr(loss, "__name__", type(loss).__name__))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a loss may warn of what the checks do on purpose
        return LossReport(label, tuple(_result(prop, probe) for prop in chosen))


def _result(prop: Property, probe: Probe) -> Result:
    finding = _find(prop, probe)
    if finding.holds is None:
        return Result(prop, "not applicable", finding.evidence)
    return Result(prop, "holds" if finding.holds else kind_of_miss(prop.kind), finding.evidence)


def _find(prop: Property, probe: Probe) -> Finding:
    if prop.needs is not None and getattr(probe, prop.needs) is None:
        return Finding(None, NEEDS[prop.needs])
    try:
        return prop.check(probe)
    except UnusableResult as error:
        return Finding(False, str(error))
    except Exception as error:  # a loss of anybody's may raise anything, and that is what is reported
        text = f"raises {type(error).__name__}: {' '.join(str(error).split())}"
        return Finding(False if prop.raising_fails else None, text[:MAX_ERROR_CHARACTERS])
