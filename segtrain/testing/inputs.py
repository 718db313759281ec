"""Properties of a loss in how it takes its inputs: types, strides, repeatability, labels that do not exist."""

from __future__ import annotations

import torch
from torch import Tensor

from segtrain.testing.probe import Finding, Probe, UnusableResult

TARGET_TYPES = (torch.uint8, torch.int16, torch.int32)
# What a loss may raise to refuse an input. Anybody's loss is called here, so the list is wide.
REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, AssertionError, NotImplementedError)


def inputs_stay_as_they_are(probe: Probe) -> Finding:
    """Neither logits nor target are written to."""
    logits, labels = probe.batch(ignored=0.3)
    target = probe.encode(labels)
    before = logits.clone(), target.clone()
    probe.call(logits, target)
    changed = [
        f"{int((now != then).sum())} entries of the {name} changed"
        for name, now, then in (("logits", logits, before[0]), ("target", target, before[1]))
        if not torch.equal(now, then)
    ]
    return Finding(not changed, ", ".join(changed) or "both unchanged")


def equal_inputs_give_equal_bits(probe: Probe) -> Finding:
    """Two calls with the same batch give the same loss and gradient, bit for bit."""
    logits, labels = probe.batch(ignored=0.3)
    (first, gradient), (second, again) = probe.slope(logits, labels), probe.slope(logits, labels)
    same = first == second and torch.equal(gradient, again)
    return Finding(same, "the same bits" if same else f"{first!r}, then {second!r}")


def strides_do_not_matter(probe: Probe) -> Finding:
    """channels_last, sliced and transposed logits and a sliced target give the loss and gradient of contiguous ones."""
    logits, labels = probe.batch(ignored=0.3)
    value, gradient = probe.slope(logits, labels)
    padded = torch.full((*logits.shape[:3], 2 * logits.shape[3]), 7.0, dtype=logits.dtype)
    padded[..., ::2] = logits
    layouts = {
        "channels_last": logits.contiguous(memory_format=torch.channels_last),
        "sliced": padded[..., ::2],
        "transposed": logits.transpose(2, 3).contiguous().transpose(2, 3),
    }
    found = {name: _outcome(probe, layout, labels, value, gradient) for name, layout in layouts.items()}
    sliced = probe.encode(labels).repeat_interleave(2, dim=-1)[..., ::2]
    with torch.no_grad():
        found["sliced target"] = "" if probe.agree(float(probe.call(logits, sliced)), value) else "differs"
    wrong = [f"{name} {text}" for name, text in found.items() if text]
    return Finding(not wrong, "; ".join(wrong) or f"{value:.4g} each")


def target_types_do_not_matter(probe: Probe) -> Finding:
    """uint8, int16 and int32 targets give the loss of int64 ones, or are refused aloud."""
    logits, labels = probe.batch(ignored=0.3)
    value = probe.value(logits, labels)
    target = probe.encode(labels)
    equal, refused, wrong = [], [], []
    for dtype in TARGET_TYPES:
        name = str(dtype).removeprefix("torch.")
        if not torch.equal(target.to(dtype).long(), target):
            continue  # the ignore_index or the labels do not fit
        try:
            found = float(probe.call(logits, target.to(dtype)))
        except REFUSALS:
            refused.append(name)
            continue
        equal.append(name) if probe.agree(found, value) else wrong.append(f"{name} gives {found:.4g}")
    parts = [f"int64 gives {value:.4g}, " + ", ".join(wrong)] if wrong else []
    parts += [", ".join(equal) + " equal int64"] if equal else []
    parts += ["refuses " + ", ".join(refused)] if refused else []
    return Finding(False if wrong else True if equal else None, "; ".join(parts))


def labels_out_of_range_raise(probe: Probe) -> Finding:
    """A label that is neither a class nor `ignore_index` raises on the CPU."""
    logits, labels = probe.batch()
    beyond = probe.num_classes if probe.activation == "softmax" else 2
    accepted, raised = [], []
    for label in (beyond, -1):
        if label == probe.ignore_index:
            continue
        target = probe.encode(labels)
        target.view(-1)[0] = label
        try:
            accepted.append(f"label {label} gives {float(probe.call(logits, target)):.4g}")
        except Exception as error:  # whatever it raises, it says something
            raised.append(type(error).__name__)
    return Finding(not accepted, "; ".join(accepted) or "raises " + ", ".join(dict.fromkeys(raised)))


def _outcome(probe: Probe, logits: Tensor, labels: Tensor, value: float, gradient: Tensor) -> str:
    """Return what is wrong with the loss of logits in another layout, or nothing."""
    try:
        found, slope = probe.slope(logits, labels)
    except (*REFUSALS, UnusableResult) as error:
        return f"raises {type(error).__name__}"
    if not probe.agree(found, value):
        return f"gives {found:.4g} for {value:.4g}"
    return "" if probe.close(slope, gradient) else "gives another gradient"
