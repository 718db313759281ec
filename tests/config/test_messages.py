"""What users read when a training file is wrong: all of it, where it is, and in words."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from segtrain.config import load_config
from segtrain.config.data import DataConfig
from segtrain.errors import ConfigError

Write = Callable[..., str]

MANY_MISTAKES = """\
data:
  root: x
  classes: [bg, {name: road, color: [1, 2, 300]}]
  train_transforms:
    - {name: crop, size: [32, 32]}
    - {name: horizontal_flp, p: .5}
    - {size: 3}
  ignore_idx: 255
  on_bad: Eror
loss:
  terms:
    - {name: dice, weight: -1, dice: 3}
    - {name: focl}
  class_weights: {scheme: manual, weights: {bg: -1}}
  ohem: {min_kept: 0, threshold: 1.5}
optimizer: {name: adam, lr: 1}
train:
  epochs: no
  batch_size: 2.5
tran: 1
tran: 2
model:
  freeze: [encodr]
"""

EXPECTED = """\
m.yaml:3: data.classes.1.color.2: found 300 (a whole number), expected a whole number of at least 0 and at most 255
m.yaml:6: data.train_transforms.1.name: unknown name 'horizontal_flp'; valid names: random_scale, crop,
m.yaml:7: data.train_transforms.2.name: missing; expected one of: random_scale, crop,
m.yaml:8: data.ignore_idx: unknown key; did you mean 'ignore_index'?
m.yaml:9: data.on_bad: found 'Eror' (text), expected one of: error, skip; did you mean 'error'?
m.yaml:12: loss.terms.0.weight: found -1 (a whole number), expected a number of at least 0
m.yaml:12: loss.terms.0.dice: unknown key; expected one of: weight,
m.yaml:13: loss.terms.1.name: unknown name 'focl'; valid names: cross_entropy, focal, balanced_cross_entropy, dice
m.yaml:14: loss.class_weights.weights.bg: found -1 (a whole number), expected a number of at least 0
m.yaml:15: loss.ohem.threshold: found 1.5 (a number), expected a number above 0 and at most 1 or null
m.yaml:15: loss.ohem.min_kept: found 0 (a whole number), expected a whole number of at least 1, a number above
m.yaml:16: optimizer.name: unknown name 'adam'; valid names: adamw, sgd; did you mean 'adamw'?
m.yaml:18: train.epochs: found 'no' (text), expected a whole number of at least 1 or null
m.yaml:19: train.batch_size: found 2.5 (a number), expected a whole number of at least 1
m.yaml:20: tran: unknown key; did you mean 'train'?
m.yaml:21: tran: given twice; first in line 20
m.yaml:23: model.freeze.0: found 'encodr' (text), expected one of: encoder, batchnorm; did you mean 'encoder'?
"""


def test_all_problems_of_a_file_are_told_at_once_with_line_key_and_suggestion(training_file: Write) -> None:
    path = training_file(MANY_MISTAKES, name="m.yaml")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    told, expected = str(error.value).splitlines(), EXPECTED.splitlines()
    assert len(told) == len(expected)
    for line, start in zip(told, expected, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("loss: atuo\n", "loss: found 'atuo' (text), expected auto or a section with terms; did you mean 'auto'?"),
        ("loss: 5\n", "loss: found 5 (a whole number), expected auto or a section with terms"),
        ("loss: {}\n", "loss.terms: missing; expected a list"),
        ("loss: {terms: []}\n", "loss.terms: found [] (a list of 0), expected a list not empty"),
        ("loss: {terms: dice}\n", "loss.terms: found 'dice' (text), expected a list"),
        ("loss: {terms: [dice]}\n", "loss.terms.0: found 'dice' (text), expected a section"),
        (
            "loss: {terms: [{name: cross_entropy}], reduction: weighted}\n",
            "loss: reduction: weighted divides pixel terms by the sum of their class weights; there is no class",
        ),
        (
            "loss: {terms: [{name: dice, class_weights: true}], class_weights: {scheme: enet}, reduction: weighted}\n",
            "there is no pixel term (cross_entropy, focal), so it would change nothing",
        ),
        ("optimizer: sgd\n", "optimizer: found 'sgd' (text), expected a section"),
        ("optimizer: {lr: -1}\n", "optimizer.lr: found -1 (a whole number), expected a number above 0"),
        ("optimizer: {name: 3, lr: 1}\n", "optimizer.name: found 3 (a whole number); expected one of: adamw, sgd"),
        ("optimizer: {name: sgd}\n", "optimizer.lr: missing; expected a number above 0"),
        ("optimizer: {name: sgd, lr: .inf}\n", "optimizer.lr: found inf"),
        ("optimizer: {name: adamw, lr: 1, betas: [0.9]}\n", "optimizer.betas"),
        ("evaluate: {tile: 512}\n", "evaluate.tile: found 512 (a whole number), expected a section with size or null"),
        ("evaluate: {tile: {size: [0, 5]}}\n", "evaluate.tile.size.0: found 0 (a whole number), expected"),
        ("evaluate: {exclude: [crck]}\n", "experiment.yaml:6: evaluate.exclude: crck not among the classes"),
        (
            "evaluate:\n  batch_size: yes\n",
            "experiment.yaml:7: evaluate.batch_size: found 'yes' (text), expected a whole",
        ),
        ("model: {in_channels: 4}\n", "data.normalize has 3 channels and model.in_channels is 4"),
        ("device: gpu\n", "device: found 'gpu' (text), expected text matching"),
        ("seed: true\n", "seed: found true (true or false), expected a whole number"),
        ("5: x\n", "5: unknown key"),
        ("lr: 3\n", "lr: unknown key; did you mean optimizer.lr?"),
        ("name: a/b\n", "name: found 'a/b' (text), expected text"),
        ("model: null\n", "model: found null (nothing), expected a section"),
    ],
)
def test_a_wrong_value_is_told_in_one_line_of_words(training_file: Write, more: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(training_file(more=more))
    text = str(error.value)
    assert len(text.splitlines()) == 1
    assert message in text
    assert text.startswith("experiment.yaml:")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "{root: r, classes: [a, b], label_map: {a: b}}",
            "data.label_map.a: found the key 'a' (text), expected a whole number",
        ),
        ("{root: r, classes: [a, b], label_map: {0: c}}", "data: label_map[0]: 'c' is not a class"),
        (
            "{root: r, classes: [a, b], label_map: {0: a, -1: b, 65536: b}}",
            "data.label_map: masks hold values from 0 to 65535, so none can be -1, 65536",
        ),
        ("{root: r, classes: [a, a]}", "data.classes: class names must be distinct"),
        (
            "{root: r, classes: [a, b], normalize: {mean: [124, 116, 104], std: [0.2, 0.2, 0.2]}}",
            "data.normalize.mean: mean and std are fractions of the value range, from 0 to 1, "
            "found [124.0, 116.0, 104.0]: divide numbers meant for values of 0 to 255 by 255",
        ),
        (
            "{root: r, classes: [a, b], normalize: {mean: [0, 0, 0], std: [58, 57, 57]}}",
            "data.normalize.std: mean and std are fractions of the value range",
        ),
        (
            "{root: r, classes: [a, b], train_transforms: [{name: random_scale, limits: [2, 1]}]}",
            "data.train_transforms.0.limits: expected [smallest, largest], found [2.0, 1.0]",
        ),
        (
            "{root: r, classes: [a, b], train_transforms: [{name: blur, sigma: [1.5, 0.5]}]}",
            "data.train_transforms.0.sigma: expected [smallest, largest], found [1.5, 0.5]",
        ),
        (
            "{root: r, classes: [a, b], train_transforms: [{name: noise, std: [0.5, 0.1]}]}",
            "data.train_transforms.0.std: expected [smallest, largest], found [0.5, 0.1]",
        ),
        ("{root: r, classes: [a, b], splits: {train: t}}", "data.splits has no 'val'"),
        ("{root: r, classes: {a: 1}}", "data.classes: found {'a': 1} (a mapping), expected a list"),
        ("{root: r, classes: [a, 3]}", "data.classes.1: found 3 (a whole number), expected a section with name"),
        ("{root: r, classes: [a, b], generate: {seed: 1}}", "data.generate.name: missing; expected quickstart"),
        ("{classes: [a, b]}", "data.root: missing; expected text"),
    ],
)
def test_a_wrong_data_section_is_told_in_one_line_of_words(training_file: Write, data: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(training_file(f"data: {data}\ntrain: {{epochs: 1}}\n"))
    text = str(error.value)
    assert len(text.splitlines()) == 1
    assert text.startswith("experiment.yaml:1: ")
    assert message in text


def test_the_largest_value_of_a_16_bit_mask_has_its_place_in_label_map() -> None:
    assert DataConfig(root="r", classes=["a", "b"], label_map={0: 0, 65535: "b"}).label_map == {0: 0, 65535: "b"}


def test_more_classes_than_int16_numbers_are_refused_before_anything_slow() -> None:
    names = [f"c{number}" for number in range(32768)]
    assert len(DataConfig(root="r", classes=names[1:], ignore_index=-1).classes) == 32767
    with pytest.raises(ValidationError, match="32768 classes: at most 32767 can be told apart"):
        DataConfig(root="r", classes=names, ignore_index=-1)


def test_no_word_of_the_validator_reaches_the_user(training_file: Write) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(training_file(MANY_MISTAKES))
    for word in ("Input should", "literal", "constrained", "union", "pydantic", "tuple", "dict", "NoneType"):
        assert word not in str(error.value)
