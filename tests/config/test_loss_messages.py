"""What a wrong loss section is told: the key, the line, what was found and what would do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from segtrain.config import load_config
from segtrain.errors import ConfigError

WRONG = """\
loss:
  activation: sigmoyd
  terms:
    - {name: focal, gamma: {background: 2.0, crack: x}, weight: {star: 0.0, end: 1.0}}
    - {name: dice, weight: -1}
    - {name: dice, weight: {start: low}}
    - {name: focal, gamma: [1.0, -1.0]}
    - {name: tversky, alpha: 0.0, beta: 0.0}
    - {name: focal_tversky, gamma: 0}
  auxiliary: {weights: [1.0]}
  prior: {tau: 0}
"""
TOLD = [
    "m.yaml:7: loss.activation: found 'sigmoyd' (text), expected one of: softmax, sigmoid; did you mean 'sigmoid'?",
    "m.yaml:9: loss.terms.0.weight.star: unknown key; did you mean 'start'?",
    "m.yaml:9: loss.terms.0.gamma.crack: found 'x' (text), expected a number of at least 0",
    "m.yaml:10: loss.terms.1.weight: found -1 (a whole number), expected a number of at least 0 or a section",
    "m.yaml:11: loss.terms.2.weight.start: found 'low' (text), expected a number of at least 0",
    "m.yaml:12: loss.terms.3.gamma.1: found -1.0 (a number), expected a number of at least 0",
    "m.yaml:13: loss.terms.4: alpha and beta are both 0, so no error would cost anything: raise one of them",
    "m.yaml:14: loss.terms.5.gamma: the exponent is 1 / gamma, so gamma must be above 0 for every class",
    "m.yaml:15: loss.auxiliary.weights: found [1.0] (a list of 1), expected a list of at least 2",
    "m.yaml:16: loss.prior.tau: found 0 (a whole number), expected a number above 0",
]


def test_every_wrong_value_is_told_with_its_key_and_line(training_file: Callable[..., str]) -> None:
    path = training_file(more=WRONG, name="m.yaml")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    lines = str(error.value).splitlines()
    for expected in TOLD:
        assert any(line.startswith(expected) for line in lines), (expected, lines)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("{terms: [{name: dice}], ohem: {top_k: 0.5}}", "ohem acts on pixel terms, and there is none"),
        ("{terms: [{name: dice}], prior: {}}", "prior acts on pixel terms"),
        ("{terms: [{name: lovasz}], margin: {}}", "margin acts on pixel terms"),
        ("{terms: [{name: dice}], reduction: weighted}", "there is no pixel term"),
        ("{terms: [{name: dice, class_weights: true}]}", "loss.class_weights.scheme is none"),
        ("{terms: [{name: generalized_dice}], class_weights: {scheme: enet}}", "class_weights would weight nothing"),
        ("{terms: [{name: balanced_cross_entropy}]}", "set activation: sigmoid"),
        ("{terms: [{name: dice}], like: torch}", "like: torch has cross_entropy, and no dice"),
        ("{terms: [{name: dice, label: total}]}", "'total' is the key of the sum"),
        (
            "{terms: [{name: focal, gamma: {backgroun: 1.0, crack: 2.0}}]}",
            "gamma of focal: unknown class 'backgroun'; did you mean 'background'",
        ),
        ("{terms: [{name: focal_tversky, gamma: [1.0]}]}", "holds 1 values, expected one for each of the 2 classes"),
        ("{terms: [{name: boundary, classes: [crak]}]}", "'crak' is not among the 2 classes; did you mean 'crack'"),
        ("{terms: [{name: cl_dice, classes: [2]}]}", "2 is not among the 2 classes"),
        (
            "{terms: [{name: focal}], class_weights: {scheme: manual, weights: [1.0]}}",
            "class_weights.weights holds 1 weights, expected one for each of the 2 classes",
        ),
    ],
)
def test_what_would_have_no_effect_is_refused(training_file: Callable[..., str], section: str, words: str) -> None:
    path = training_file(more=f"loss: {section}\n")
    with pytest.raises(ConfigError, match=words):
        load_config(path)
